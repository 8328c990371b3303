/* Instructions per sample, counted by an emulator that takes one nanosecond for each: `make bench`. */
#include "board.h"
#include "ecg.h"
#include "m2jl_device.h"

#define NS_PER_COUNT (1000000000U / CORE_HZ)
#define ROUNDS 1000U /* of one frame: the counter has 24 bits, 0.67 s */

static m2jl_device_t device;

void SysTick_Handler(void);
void UART0_RX_Handler(void);
void SysTick_Handler(void) {}
void UART0_RX_Handler(void) {}

static bool send(void *context, const uint8_t *bytes, size_t length) {
    (void)context;
    (void)bytes;
    (void)length;
    return true;
}

static uint32_t now(void) { return 0xFFFFFFU - SYSTICK->value; }

static void print(const char *text) {
    for (const char *c = text; *c != '\0'; c++) {
        UART0->data = (uint8_t)*c;
    }
}

static void print_number(uint32_t number) {
    char digits[11];
    uint32_t at = 10U;
    uint32_t rest = number;
    digits[10] = '\0';
    do {
        at--;
        digits[at] = (char)('0' + (int)(rest % 10U));
        rest /= 10U;
    } while (rest != 0U);
    print(&digits[at]);
}

static void measure(uint8_t leads, uint8_t bytes_per_sample) {
    static const char *const names[ECG_LEADS] = {"I",  "II", "III", "aVR", "aVL", "aVF",
                                                 "V1", "V2", "V3",  "V4",  "V5",  "V6"};
    static m2jl_device_config_t config;
    static const uint8_t samples = 10U;
    config.device_id = "bench";
    config.firmware = "1";
    config.lead_names = names;
    config.leads = leads;
    config.bytes_per_sample = bytes_per_sample;
    config.frame_ms = 20U;
    config.rate_millihz = 500000U;
    config.gain_nv_per_count = 1000U;
    config.send = send;
    (void)m2jl_device_init(&device, &config);
    m2jl_device_poll(&device, 0U);
    (void)m2jl_device_start(&device);
    m2jl_device_poll(&device, 0U);
    uint32_t push = 0U;
    uint32_t poll = 0U;
    for (uint32_t round = 0U; round < ROUNDS; round++) {
        int32_t counts[ECG_LEADS];
        for (uint32_t lead = 0U; lead < (uint32_t)ECG_LEADS; lead++) {
            counts[lead] = (int32_t)ecg_uv[round % ecg_samples][lead] * 20;
        }
        const uint32_t begin = now();
        for (uint8_t sample = 0U; sample < samples; sample++) {
            (void)m2jl_device_push(&device, counts, 0U, 0U);
        }
        const uint32_t between = now();
        m2jl_device_poll(&device, 0U);
        push += (between - begin) & 0xFFFFFFU;
        poll += (now() - between) & 0xFFFFFFU;
    }
    print_number(leads);
    print(" leads of ");
    print_number(8U * (uint32_t)bytes_per_sample);
    print(" bits: push ");
    print_number(push * (NS_PER_COUNT / samples) / ROUNDS);
    print(", poll ");
    print_number(poll * (NS_PER_COUNT / samples) / ROUNDS);
    print(" instructions per sample\r\n");
}

static void leave(void) {
    register uint32_t operation __asm__("r0") = 0x18U; /* semihosting: exit */
    register uint32_t reason __asm__("r1") = 0x20026U; /* as planned */
    __asm__ volatile("bkpt 0xAB" : : "r"(operation), "r"(reason) : "memory");
}

int main(void) {
    UART0->divider = CORE_HZ / 230400U;
    UART0->ctrl = 1U;
    SYSTICK->reload = 0xFFFFFFU;
    SYSTICK->value = 0U;
    SYSTICK->ctrl = 5U;
    measure(1U, 2U);
    measure(3U, 3U);
    measure(12U, 2U);
    measure(12U, 3U);
    leave();
    return 0;
}
