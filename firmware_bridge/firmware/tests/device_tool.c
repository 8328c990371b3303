/* A device of four leads at 500 Hz for another implementation to talk to, a line of standard input at a time:
 *
 *     feed HEX      bytes from the host
 *     push N        N samples; lead n of sample t, counted since the start of this program, is 7 t + n
 *     poll MS       the main loop at that time
 *     full 0|1      whether the line takes frames
 *
 * What the device sends is printed as hexadecimal, a line per frame, and an empty line ends the answer to each line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "m2jl_device.h"

static bool line_full;

static bool send(void *context, const uint8_t *bytes, size_t length) {
    (void)context;
    if (line_full) {
        return false;
    }
    for (size_t i = 0U; i < length; i++) {
        (void)printf("%02x", (unsigned)bytes[i]);
    }
    (void)printf("\n");
    return true;
}

static bool set_rate(void *context, uint32_t rate_millihz) {
    (void)context;
    return (rate_millihz == 250000U) || (rate_millihz == 500000U) || (rate_millihz == 1000000U);
}

static void feed_hex(m2jl_device_t *device, const char *hex) {
    char digits[3] = {'0', '0', '\0'};
    for (size_t i = 0U; (hex[i] > ' ') && (hex[i + 1U] > ' '); i += 2U) {
        digits[0] = hex[i];
        digits[1] = hex[i + 1U];
        const uint8_t byte = (uint8_t)strtoul(digits, NULL, 16);
        m2jl_device_feed(device, &byte, 1U);
    }
}

int main(void) {
    static const char *const names[] = {"I", "II", "V1", "V5"};
    static m2jl_device_t device;
    static m2jl_device_config_t config;
    static char line[65536];
    int32_t pushed = 0;
    config.device_id = "tool";
    config.firmware = "test";
    config.lead_names = names;
    config.leads = 4U;
    config.bytes_per_sample = 3U;
    config.adc_bits = 24U;
    config.frame_ms = 20U;
    config.rate_millihz = 500000U;
    config.gain_nv_per_count = 50U;
    config.boot_id = 1U;
    config.send = send;
    config.set_rate = set_rate;
    if (!m2jl_device_init(&device, &config)) {
        return 1;
    }
    while (fgets(line, (int)sizeof line, stdin) != NULL) {
        if (strncmp(line, "feed ", 5U) == 0) {
            feed_hex(&device, &line[5]);
        } else if (strncmp(line, "push ", 5U) == 0) {
            for (unsigned long left = strtoul(&line[5], NULL, 10); left > 0U; left--) {
                const int32_t counts[4] = {pushed * 7, (pushed * 7) + 1, (pushed * 7) + 2, (pushed * 7) + 3};
                (void)m2jl_device_push(&device, counts, 0U, 0U);
                pushed++;
            }
        } else if (strncmp(line, "poll ", 5U) == 0) {
            m2jl_device_poll(&device, (uint32_t)strtoul(&line[5], NULL, 10));
        } else if (strncmp(line, "full ", 5U) == 0) {
            line_full = line[5] == '1';
        } else {
            return 1;
        }
        (void)printf("\n");
        (void)fflush(stdout);
    }
    return 0;
}
