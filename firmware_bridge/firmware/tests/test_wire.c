/* Frames and messages on their own.  tests/firmware_bridge/test_firmware.py compares them with the Python side. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "m2jl_wire.h"

static uint8_t packet[M2JL_MAX_PACKET_BYTES];
static uint8_t wire[M2JL_MAX_FRAME_BYTES];
static m2jl_decoder_t decoder;
static m2jl_frame_t frame;

static m2jl_bytes_t text(const char *characters) {
    const m2jl_bytes_t bytes = {(const uint8_t *)characters, strlen(characters)};
    return bytes;
}

/* Feeds a block to a decoder as it is, and gives the number of frames; the last one stays in `frame`. */
static int feed(const uint8_t *block, size_t length) {
    int frames = 0;
    size_t position = 0U;
    while (m2jl_decoder_next(&decoder, block, length, &position, &frame)) {
        frames++;
    }
    return frames;
}

static int feed_new(const uint8_t *block, size_t length) {
    m2jl_decoder_init(&decoder, packet, sizeof packet, m2jl_decode_any);
    return feed(block, length);
}

static size_t encode_ping(uint16_t id) {
    static const uint8_t argument[3] = {0U, 1U, 2U};
    const m2jl_command_t command = {id, M2JL_COMMAND_PING, {argument, sizeof argument}};
    return m2jl_encode_command(wire, sizeof wire, 65535U, &command);
}

static void crc_check_value(void) {
    const m2jl_bytes_t digits = text("123456789");
    CHECK(m2jl_crc32(0U, digits.bytes, digits.length) == 0xCBF43926U);
    CHECK(m2jl_crc32(m2jl_crc32(0U, digits.bytes, 4U), &digits.bytes[4], 5U) == 0xCBF43926U);
    CHECK(m2jl_crc32(0U, NULL, 0U) == 0U);
}

static void set_rate_is_the_vector_of_the_document(void) {
    static const uint8_t expected[] = {0x00, 0x04, 0x11, 0x81, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01,
                                       0x01, 0x01, 0x01, 0x08, 0x35, 0x12, 0x05, 0x04, 0x90, 0xd0,
                                       0x03, 0x05, 0xdd, 0x85, 0x10, 0xab, 0x00};
    static const uint8_t rate[4] = {0x90, 0xd0, 0x03, 0x00};
    const m2jl_command_t command = {4661U, M2JL_COMMAND_SET_RATE, {rate, sizeof rate}};
    CHECK(m2jl_encode_command(wire, sizeof wire, 1U, &command) == sizeof expected);
    CHECK(memcmp(wire, expected, sizeof expected) == 0);
}

static void older_minor_version_is_read(void) {
    static const uint8_t hello[] = {0x00, 0x03, 0x10, 0x81, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01,
                                    0x01, 0x04, 0x34, 0x12, 0x01, 0x05, 0x31, 0x77, 0x10, 0x84, 0x00};
    CHECK(feed_new(hello, sizeof hello) == 1);
    CHECK(frame.type == M2JL_TYPE_COMMAND);
    CHECK(frame.minor_version == 0U);
    CHECK(frame.message.command.command_id == 4660U);
    CHECK(frame.message.command.kind == M2JL_COMMAND_HELLO);
    CHECK(frame.message.command.argument.length == 0U);
}

static void info_keeps_its_fields(void) {
    m2jl_info_t info;
    (void)memset(&info, 0, sizeof info);
    info.boot_id = 0xBEEFU;
    info.rate_millihz = 500000U;
    info.gain_nv_per_count = 50U;
    info.supply_mv = 3700U;
    info.adc_bits = 24U;
    info.bytes_per_sample = 3U;
    info.leads = 2U;
    info.lead_names[0] = text("I");
    info.lead_names[1] = text("II");
    info.device_id = text("patch");
    info.firmware = text("");
    const size_t length = m2jl_encode_info(wire, sizeof wire, 9U, UINT64_C(0x0102030405060708), &info);
    CHECK(feed_new(wire, length) == 1);
    CHECK((frame.type == M2JL_TYPE_INFO) && (frame.sequence == 9U) && (frame.tick == UINT64_C(0x0102030405060708)));
    const m2jl_info_t *read = &frame.message.info;
    CHECK((read->boot_id == 0xBEEFU) && (read->rate_millihz == 500000U) && (read->gain_nv_per_count == 50U));
    CHECK((read->supply_mv == 3700U) && (read->adc_bits == 24U) && (read->bytes_per_sample == 3U));
    CHECK((read->leads == 2U) && (read->lead_names[1].length == 2U) && (read->lead_names[1].bytes[1] == (uint8_t)'I'));
    CHECK((read->device_id.length == 5U) && (read->firmware.length == 0U));

    info.lead_names[1] = text("I");
    CHECK(m2jl_encode_info(wire, sizeof wire, 0U, 0U, &info) == 0U);
    info.lead_names[1] = text("");
    CHECK(m2jl_encode_info(wire, sizeof wire, 0U, 0U, &info) == 0U);
    info.leads = 17U;
    CHECK(m2jl_encode_info(wire, sizeof wire, 0U, 0U, &info) == 0U);
}

static void counts_survive_both_widths(void) {
    static const int32_t counts[] = {0, 1, -1, 127, -128, 32767, -32768, 32768, -32769, 8388607, -8388608, 8388608,
                                     INT32_MAX, INT32_MIN};
    for (uint8_t width = 2U; width <= 3U; width++) {
        const int32_t highest = (width == 2U) ? 32767 : 8388607;
        for (size_t i = 0U; i < (sizeof counts / sizeof counts[0]); i++) {
            uint8_t data[3];
            const bool inside = m2jl_pack_count(data, counts[i], width);
            const m2jl_samples_t samples = {0U, 0U, 0U, 1U, 1U, width, data};
            int32_t expected = (counts[i] > highest) ? highest : counts[i];
            expected = (expected < (-highest - 1)) ? (-highest - 1) : expected;
            CHECK(m2jl_samples_count(&samples, 0U, 0U) == expected);
            CHECK(inside == ((expected != highest) && (expected != (-highest - 1))));
        }
    }
}

static void text_is_cut_between_characters(void) {
    char long_text[600];
    (void)memset(long_text, 'x', sizeof long_text);
    long_text[599] = '\0';
    long_text[511] = (char)0xC3; /* a character of two bytes over the limit of 512 */
    long_text[512] = (char)0xA4;
    const m2jl_log_t log = {M2JL_LEVEL_INFO, text(long_text)};
    CHECK(feed_new(wire, m2jl_encode_log(wire, sizeof wire, 0U, 0U, &log)) == 1);
    CHECK(frame.message.log.text.length == 511U);
}

static void too_small_a_buffer_is_refused(void) {
    const size_t length = encode_ping(1U);
    uint8_t *exact = malloc(length); /* of its own, so that the sanitizer sees a write behind it */
    const m2jl_command_t command = {1U, M2JL_COMMAND_PING, {(const uint8_t *)"\0\1\2", 3U}};
    for (size_t capacity = 0U; capacity < length; capacity++) {
        CHECK(m2jl_encode_command(exact, capacity, 65535U, &command) == 0U);
    }
    CHECK(m2jl_encode_command(exact, length, 65535U, &command) == length);
    CHECK(memcmp(exact, wire, length) == 0);
    free(exact);
}

static void largest_frame_fits_and_no_larger_one(void) {
    static uint8_t data[1014];
    (void)memset(data, 1, sizeof data);
    m2jl_samples_t samples = {0x0101U, 0x0101U, 0x0101U, 13U, 39U, 2U, data};
    const size_t length = m2jl_encode_samples(wire, sizeof wire, 0x0101U, UINT64_C(0x0101010101010101), &samples);
    CHECK((length == M2JL_MAX_FRAME_BYTES) || (length == (M2JL_MAX_FRAME_BYTES - 1U)));
    CHECK(feed_new(wire, length) == 1);
    samples.samples = 40U;
    CHECK(m2jl_encode_samples(wire, sizeof wire, 0U, 0U, &samples) == 0U);
    samples.samples = 0U;
    CHECK(m2jl_encode_samples(wire, sizeof wire, 0U, 0U, &samples) == 0U);
}

static void a_last_full_run_has_two_spellings(void) {
    /* Behind the reserved zero of SAMPLES: 250 bytes of counts and a CRC, 254 bytes without a zero. */
    static uint8_t data[250];
    (void)memset(data, 1, sizeof data);
    const m2jl_samples_t samples = {0x0101U, 0x0101U, 0x0101U, 1U, 125U, 2U, data};
    const size_t length = m2jl_encode_samples(wire, sizeof wire, 0x0101U, UINT64_C(0x0101010101010101), &samples);
    CHECK(length == (1U + 22U + 255U + 1U));
    CHECK(feed_new(wire, length) == 1);
    wire[length - 1U] = 1U; /* as other encoders end it */
    wire[length] = 0U;
    CHECK(feed(wire, length + 1U) == 1);
    CHECK((frame.message.samples.samples == 125U) && (m2jl_decoder_dropped(&decoder) == 0U));
}

static void every_reason_is_counted(void) {
    const size_t length = encode_ping(7U);
    uint8_t damaged[M2JL_MAX_FRAME_BYTES];
    (void)memcpy(damaged, wire, length);
    damaged[14] ^= 0x40U; /* the command id; 15 is a code byte of COBS */
    CHECK((feed_new(damaged, length) == 0) && (decoder.dropped[M2JL_DROP_CRC] == 1U));

    static const uint8_t cut[] = {0x00, 0x05, 0x11, 0x00};
    CHECK((feed_new(cut, sizeof cut) == 0) && (decoder.dropped[M2JL_DROP_FRAMING] == 1U));

    m2jl_decoder_init(&decoder, packet, sizeof packet, m2jl_decode_any);
    for (unsigned i = 0U; i < 1045U; i++) {
        CHECK(!m2jl_decoder_push(&decoder, 1U, &frame));
    }
    CHECK(m2jl_decoder_dropped(&decoder) == 0U);
    for (unsigned i = 0U; i < 5000U; i++) {
        CHECK(!m2jl_decoder_push(&decoder, 1U, &frame));
    }
    CHECK((m2jl_decoder_dropped(&decoder) == 1U) && (decoder.dropped[M2JL_DROP_OVERLONG] == 1U));
    CHECK(feed(wire, length) == 1);
    CHECK((decoder.frames == 1U) && (m2jl_decoder_dropped(&decoder) == 1U));

    const m2jl_status_t status = {1U, true, M2JL_REASON_NONE, 0U, 0U, 0U};
    const size_t status_length = m2jl_encode_status(wire, sizeof wire, 0U, 0U, &status);
    m2jl_decoder_init(&decoder, packet, sizeof packet, m2jl_decode_command);
    CHECK((feed(wire, status_length) == 0) && (decoder.dropped[M2JL_DROP_UNKNOWN_TYPE] == 1U));
}

static void a_small_decoder_takes_short_frames_alone(void) {
    uint8_t small[84];
    uint8_t argument[64];
    (void)memset(argument, 1, sizeof argument);
    const m2jl_command_t longest = {0x0101U, M2JL_COMMAND_PING, {argument, sizeof argument}};
    const size_t length = m2jl_encode_command(wire, sizeof wire, 0x0101U, &longest);
    m2jl_decoder_init(&decoder, small, sizeof small, m2jl_decode_command);
    CHECK(feed(wire, length) == 1);
    m2jl_decoder_init(&decoder, small, sizeof small - 1U, m2jl_decode_command);
    CHECK((feed(wire, length) == 0) && (m2jl_decoder_dropped(&decoder) == 1U));
}

static void the_next_intact_frame_is_never_lost(void) {
    uint32_t state = 1U;
    m2jl_decoder_init(&decoder, packet, sizeof packet, m2jl_decode_any);
    for (unsigned round = 0U; round < 2000U; round++) {
        const unsigned garbage = (round * 7U) % 1500U;
        for (unsigned i = 0U; i < garbage; i++) {
            state = (state * 1664525U) + 1013904223U;
            (void)m2jl_decoder_push(&decoder, (uint8_t)(state >> 24U), &frame);
        }
        const size_t length = encode_ping((uint16_t)round);
        CHECK(feed(wire, length) == 1);
        CHECK(frame.message.command.command_id == (uint16_t)round);
    }
}

static void frames_may_share_a_delimiter(void) {
    const size_t length = encode_ping(1U);
    CHECK(feed_new(wire, length) == 1);
    CHECK(feed(&wire[1], length - 1U) == 1);
    CHECK(m2jl_decoder_dropped(&decoder) == 0U);
}

int main(void) {
    RUN(crc_check_value);
    RUN(set_rate_is_the_vector_of_the_document);
    RUN(older_minor_version_is_read);
    RUN(info_keeps_its_fields);
    RUN(counts_survive_both_widths);
    RUN(text_is_cut_between_characters);
    RUN(too_small_a_buffer_is_refused);
    RUN(largest_frame_fits_and_no_larger_one);
    RUN(a_last_full_run_has_two_spellings);
    RUN(every_reason_is_counted);
    RUN(a_small_decoder_takes_short_frames_alone);
    RUN(the_next_intact_frame_is_never_lost);
    RUN(frames_may_share_a_delimiter);
    return (checks_failed == 0) ? 0 : 1;
}
