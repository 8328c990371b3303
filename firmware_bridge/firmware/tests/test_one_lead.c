/* One lead in as little RAM as README.md names: frames of samples are shorter here than the longest answer. The build
 * sets the sizes, for the library and for this file alike. */
#include <string.h>

#include "check.h"
#include "m2jl_device.h"

static m2jl_device_t device;

/* Of the last frame that was sent, and of how many. */
static unsigned sent;
static uint8_t last_type;
static uint8_t last_samples;
static uint8_t last_echo[M2JL_MAX_ARGUMENT_BYTES];
static size_t last_echo_length;

static bool send(void *context, const uint8_t *bytes, size_t length) {
    static uint8_t packet[M2JL_MAX_PACKET_BYTES];
    (void)context;
    m2jl_decoder_t decoder;
    m2jl_frame_t frame;
    size_t position = 0U;
    m2jl_decoder_init(&decoder, packet, sizeof packet, m2jl_decode_any);
    CHECK(m2jl_decoder_next(&decoder, bytes, length, &position, &frame));
    sent++;
    last_type = frame.type;
    if (frame.type == M2JL_TYPE_ACK) {
        last_echo_length = frame.message.ack.echo.length;
        (void)memcpy(last_echo, frame.message.ack.echo.bytes, last_echo_length);
    } else if (frame.type == M2JL_TYPE_SAMPLES) {
        last_samples = frame.message.samples.samples;
    } else {
        /* the others are known by their type */
    }
    return true;
}

static void begin(void) {
    static const char *const lead_names[] = {"I"};
    static m2jl_device_config_t config;
    config.device_id = "patch";
    config.firmware = "1";
    config.lead_names = lead_names;
    config.leads = 1U;
    config.bytes_per_sample = 2U;
    config.adc_bits = 16U;
    config.frame_ms = 20U;
    config.rate_millihz = 1000000U;
    config.gain_nv_per_count = 1000U;
    config.send = send;
    CHECK(m2jl_device_init(&device, &config));
    m2jl_device_poll(&device, 0U);
    sent = 0U;
}

static void command(uint8_t kind, const uint8_t *argument, size_t length) {
    uint8_t wire[M2JL_FRAME_BYTES(M2JL_MAX_COMMAND_PAYLOAD_BYTES)];
    const m2jl_command_t order = {99U, kind, {argument, length}};
    m2jl_device_feed(&device, wire, m2jl_encode_command(wire, sizeof wire, 0U, &order));
}

static void every_argument_is_returned(void) {
    uint8_t argument[M2JL_MAX_ARGUMENT_BYTES];
    begin();
    for (size_t length = 0U; length <= sizeof argument; length++) {
        (void)memset(argument, (int)length, sizeof argument);
        command(M2JL_COMMAND_PING, argument, length);
        CHECK((sent == (unsigned)length + 1U) && (last_type == M2JL_TYPE_ACK));
        CHECK((last_echo_length == length) && (memcmp(last_echo, argument, length) == 0));
    }
    sent = 0U;
    command(M2JL_COMMAND_HELLO, NULL, 0U);
    CHECK((sent == 3U) && (last_type == M2JL_TYPE_STATUS));
}

static void frames_hold_as_many_samples_as_were_asked_for(void) {
    static const int32_t count = 7;
    begin();
    command(M2JL_COMMAND_START, NULL, 0U);
    for (unsigned t = 0U; t < 20U; t++) {
        CHECK(m2jl_device_push(&device, &count, 0U, 0U));
    }
    m2jl_device_poll(&device, 20U);
    CHECK((last_type == M2JL_TYPE_SAMPLES) && (last_samples == 20U));
}

int main(void) {
    RUN(every_argument_is_returned);
    RUN(frames_hold_as_many_samples_as_were_asked_for);
    return (checks_failed == 0) ? 0 : 1;
}
