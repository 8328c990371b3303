/* The conversation, from the side of a host that sees every frame. */
#include <string.h>

#include "check.h"
#include "m2jl_device.h"

static m2jl_device_t device;
static m2jl_device_config_t config;
static const char *const lead_names[] = {"I", "II", "V1"};

/* The line: every frame that the device sends is decoded at once and kept as the little that the tests look at. */
typedef struct {
    uint8_t type;
    uint64_t tick;
    uint8_t leads;
    uint8_t samples;
    uint16_t boot_id;
    uint16_t lead_off;
    uint16_t saturated;
    int32_t first_counts[3];
    uint32_t rate_millihz;
    m2jl_status_t status;
    m2jl_ack_t ack;
} seen_t;

static seen_t seen[256];
static unsigned seen_count;
static uint16_t expected_sequence;
static bool line_full;
static size_t line_room; /* bytes */
static bool converter_on;
static bool converter_works;
static uint16_t chosen_leads;
static uint32_t chosen_rate;

static bool send(void *context, const uint8_t *bytes, size_t length) {
    static uint8_t packet[M2JL_MAX_PACKET_BYTES];
    (void)context;
    if (line_full || (length > line_room)) {
        return false;
    }
    line_room -= length;
    m2jl_decoder_t decoder;
    m2jl_frame_t frame;
    size_t position = 0U;
    m2jl_decoder_init(&decoder, packet, sizeof packet, m2jl_decode_any);
    CHECK(m2jl_decoder_next(&decoder, bytes, length, &position, &frame));
    CHECK(position == length);
    CHECK(frame.sequence == expected_sequence);
    expected_sequence++;
    seen_t *last = &seen[seen_count];
    seen_count++;
    (void)memset(last, 0, sizeof *last);
    last->type = frame.type;
    last->tick = frame.tick;
    if (frame.type == M2JL_TYPE_SAMPLES) {
        const m2jl_samples_t *samples = &frame.message.samples;
        last->leads = samples->leads;
        last->samples = samples->samples;
        last->boot_id = samples->boot_id;
        last->lead_off = samples->lead_off;
        last->saturated = samples->saturated;
        for (uint8_t lead = 0U; lead < samples->leads; lead++) {
            last->first_counts[lead] = m2jl_samples_count(samples, lead, 0U);
        }
    } else if (frame.type == M2JL_TYPE_INFO) {
        last->leads = frame.message.info.leads;
        last->boot_id = frame.message.info.boot_id;
        last->rate_millihz = frame.message.info.rate_millihz;
    } else if (frame.type == M2JL_TYPE_STATUS) {
        last->status = frame.message.status;
    } else if (frame.type == M2JL_TYPE_ACK) {
        last->ack = frame.message.ack;
    } else {
        /* LOG and ERROR are known by their type */
    }
    return true;
}

static bool set_streaming(void *context, bool on) {
    (void)context;
    converter_on = on && converter_works;
    return converter_works;
}

static bool set_rate(void *context, uint32_t rate_millihz) {
    (void)context;
    chosen_rate = rate_millihz;
    return rate_millihz == 250000U;
}

static bool set_leads(void *context, uint16_t mask) {
    (void)context;
    chosen_leads = mask;
    return mask != 5U;
}

static void begin(void) {
    (void)memset(&config, 0, sizeof config);
    config.device_id = "bench";
    config.firmware = "1";
    config.lead_names = lead_names;
    config.leads = 3U;
    config.bytes_per_sample = 2U;
    config.adc_bits = 16U;
    config.frame_ms = 20U;
    config.rate_millihz = 500000U;
    config.gain_nv_per_count = 1000U;
    config.boot_id = 77U;
    config.send = send;
    config.set_streaming = set_streaming;
    config.set_rate = set_rate;
    config.set_leads = set_leads;
    line_full = false;
    line_room = SIZE_MAX;
    converter_works = true;
    converter_on = false;
    seen_count = 0U;
    expected_sequence = 0U;
    CHECK(m2jl_device_init(&device, &config));
    m2jl_device_poll(&device, 0U);
}

static void command(uint8_t kind, uint32_t argument, uint8_t argument_bytes) {
    uint8_t wire[M2JL_FRAME_BYTES(M2JL_MAX_COMMAND_PAYLOAD_BYTES)];
    uint8_t bytes[4];
    for (uint8_t i = 0U; i < 4U; i++) {
        bytes[i] = (uint8_t)((argument >> (8U * i)) & 0xFFU);
    }
    const m2jl_command_t order = {99U, kind, {bytes, argument_bytes}};
    m2jl_device_feed(&device, wire, m2jl_encode_command(wire, sizeof wire, 0U, &order));
}

/* The value of lead n of sample t is 100 t + n. */
static void push(unsigned first, unsigned samples) {
    for (unsigned t = first; t < (first + samples); t++) {
        const int32_t value = (int32_t)t * 100;
        const int32_t counts[3] = {value, value + 1, value + 2};
        (void)m2jl_device_push(&device, counts, 0U, 0U);
    }
}

static bool types_are(const uint8_t *types, unsigned count) {
    bool same = seen_count == count;
    for (unsigned i = 0U; same && (i < count); i++) {
        same = seen[i].type == types[i];
    }
    return same;
}

#define TYPES_ARE(...)                                                                                        \
    types_are((const uint8_t[]){__VA_ARGS__}, (unsigned)(sizeof((const uint8_t[]){__VA_ARGS__}) / sizeof(uint8_t)))

static void it_introduces_itself_at_boot_and_every_second(void) {
    begin();
    CHECK(TYPES_ARE(M2JL_TYPE_INFO, M2JL_TYPE_STATUS));
    CHECK((seen[1].status.reason == M2JL_REASON_POWER_ON) && !seen[1].status.streaming);
    m2jl_device_poll(&device, 999U);
    CHECK(seen_count == 2U);
    m2jl_device_poll(&device, 1000U);
    CHECK(seen_count == 4U);
    m2jl_device_poll(&device, UINT32_C(0xFFFFFF00)); /* the clock wraps */
    m2jl_device_poll(&device, 0x10U);
    CHECK(seen_count == 6U);
    m2jl_device_poll(&device, 0x2E8U);
    CHECK(seen_count == 8U);
}

static void samples_come_in_frames_of_twenty_milliseconds(void) {
    begin();
    seen_count = 0U;
    command(M2JL_COMMAND_START, 0U, 0U);
    CHECK(TYPES_ARE(M2JL_TYPE_ACK, M2JL_TYPE_STATUS));
    CHECK(converter_on && seen[1].status.streaming && (seen[0].ack.command_id == 99U));
    push(0U, 25U);
    m2jl_device_poll(&device, 50U);
    CHECK(TYPES_ARE(M2JL_TYPE_ACK, M2JL_TYPE_STATUS, M2JL_TYPE_SAMPLES, M2JL_TYPE_SAMPLES));
    CHECK((seen[2].tick == 0U) && (seen[3].tick == 10U) && (seen[3].samples == 10U) && (seen[3].leads == 3U));
    CHECK((seen[3].first_counts[0] == 1000) && (seen[3].first_counts[2] == 1002));
    m2jl_device_poll(&device, 1100U);
    CHECK((seen[4].type == M2JL_TYPE_INFO) && (seen[4].tick == 20U));
    command(M2JL_COMMAND_START, 0U, 0U);
    CHECK((seen_count == 7U) && (seen[6].type == M2JL_TYPE_ACK) && (seen[6].ack.result == M2JL_RESULT_OK));
    command(M2JL_COMMAND_STOP, 0U, 0U);
    CHECK(seen_count == 10U);
    CHECK((seen[7].type == M2JL_TYPE_SAMPLES) && (seen[7].tick == 20U) && (seen[7].samples == 5U));
    CHECK((seen[8].type == M2JL_TYPE_ACK) && (seen[8].tick == 25U));
    CHECK((seen[9].type == M2JL_TYPE_STATUS) && (seen[9].status.reason == M2JL_REASON_COMMAND) && !converter_on);
    push(0U, 10U);
    m2jl_device_poll(&device, 1200U);
    CHECK(seen_count == 10U);
    command(M2JL_COMMAND_STOP, 0U, 0U);
    CHECK(seen_count == 11U);
    command(M2JL_COMMAND_START, 0U, 0U);
    push(25U, 10U);
    m2jl_device_poll(&device, 1300U);
    CHECK((seen[seen_count - 1U].tick == 25U) && (seen[seen_count - 1U].samples == 10U));
}

static void what_the_line_cannot_take_is_counted(void) {
    begin();
    command(M2JL_COMMAND_START, 0U, 0U);
    seen_count = 0U;
    line_full = true;
    for (unsigned t = 0U; t < 100U; t += 10U) {
        push(t, 10U);
        m2jl_device_poll(&device, t);
    }
    CHECK(seen_count == 0U);
    line_full = false;
    m2jl_device_poll(&device, 101U);
    CHECK(seen_count == M2JL_DEVICE_SLOTS);
    push(100U, 10U);
    m2jl_device_poll(&device, 102U);
    /* The first frame behind the gap begins where the line could take it again. */
    CHECK((seen[M2JL_DEVICE_SLOTS].tick == 100U) && (seen[M2JL_DEVICE_SLOTS].first_counts[0] == 10000));
    m2jl_device_poll(&device, 2000U);
    CHECK(seen[seen_count - 1U].status.samples_dropped == (100U - (10U * M2JL_DEVICE_SLOTS)));
    CHECK(seen[seen_count - 1U].tick == 110U);
}

static void a_full_line_delays_answers_and_loses_none(void) {
    begin();
    command(M2JL_COMMAND_START, 0U, 0U);
    push(0U, 15U);
    seen_count = 0U;
    line_full = true;
    command(M2JL_COMMAND_STOP, 0U, 0U);
    command(M2JL_COMMAND_HELLO, 0U, 0U); /* left to the host's repetition */
    line_full = false;
    m2jl_device_poll(&device, 1U);
    CHECK(TYPES_ARE(M2JL_TYPE_SAMPLES, M2JL_TYPE_SAMPLES, M2JL_TYPE_ACK, M2JL_TYPE_STATUS));
    CHECK((seen[1].tick == 10U) && (seen[1].samples == 5U) && (seen[2].ack.kind == M2JL_COMMAND_STOP));
}

/* SAMPLES of 41 bytes every 4 ms are a little more than the line takes, and INFO has 50. */
static void samples_that_are_shorter_do_not_keep_an_answer_from_leaving(void) {
    begin();
    config.frame_ms = 4U;
    expected_sequence = 0U;
    CHECK(m2jl_device_init(&device, &config));
    CHECK(m2jl_device_start(&device));
    line_room = 82U;
    unsigned sent[M2JL_TYPE_ACK + 1U] = {0U};
    for (uint32_t now_us = 0U; now_us < 5000000U; now_us += 100U) {
        line_room += (line_room < 82U) ? 1U : 0U;
        if ((now_us % 2000U) == 0U) {
            push(now_us / 2000U, 1U);
        }
        seen_count = 0U;
        m2jl_device_poll(&device, now_us / 1000U);
        for (unsigned i = 0U; i < seen_count; i++) {
            sent[seen[i].type]++;
        }
    }
    CHECK((sent[M2JL_TYPE_INFO] == 5U) && (sent[M2JL_TYPE_STATUS] == 5U));
    CHECK((sent[M2JL_TYPE_SAMPLES] > 1150U) && (sent[M2JL_TYPE_SAMPLES] < 1250U));
}

static void a_changed_rate_begins_anew(void) {
    begin();
    command(M2JL_COMMAND_START, 0U, 0U);
    push(0U, 10U);
    command(M2JL_COMMAND_SET_RATE, 250000U, 4U);
    CHECK(seen[seen_count - 1U].type == M2JL_TYPE_SAMPLES);
    CHECK(seen[seen_count - 2U].ack.result == M2JL_RESULT_REFUSED);
    command(M2JL_COMMAND_STOP, 0U, 0U);
    seen_count = 0U;
    command(M2JL_COMMAND_SET_RATE, 300000U, 4U);
    command(M2JL_COMMAND_SET_RATE, 250000U, 3U);
    command(M2JL_COMMAND_SET_RATE, 0U, 4U);
    command(M2JL_COMMAND_SET_RATE, 500000U, 4U);
    CHECK(TYPES_ARE(M2JL_TYPE_ACK, M2JL_TYPE_ACK, M2JL_TYPE_ACK, M2JL_TYPE_ACK));
    CHECK((seen[0].ack.result == M2JL_RESULT_REFUSED) && (seen[1].ack.result == M2JL_RESULT_REFUSED));
    CHECK((seen[2].ack.result == M2JL_RESULT_REFUSED) && (seen[3].ack.result == M2JL_RESULT_OK));
    seen_count = 0U;
    command(M2JL_COMMAND_SET_RATE, M2JL_MAX_RATE_MILLIHZ + 1U, 4U);
    CHECK((seen[0].ack.result == M2JL_RESULT_REFUSED) && (chosen_rate == 300000U)); /* the board was not asked */
    seen_count = 0U;
    command(M2JL_COMMAND_SET_RATE, 250000U, 4U);
    CHECK(TYPES_ARE(M2JL_TYPE_ACK, M2JL_TYPE_INFO, M2JL_TYPE_STATUS));
    CHECK((seen[0].ack.result == M2JL_RESULT_OK) && (chosen_rate == 250000U) && (seen[0].tick == 10U));
    CHECK((seen[1].rate_millihz == 250000U) && (seen[1].boot_id != 77U) && (seen[1].tick == 0U));
    CHECK((seen[2].status.reason == M2JL_REASON_COMMAND) && (seen[2].status.boot_id == seen[1].boot_id));
    const uint16_t boot_id = seen[1].boot_id;
    seen_count = 0U;
    command(M2JL_COMMAND_SET_RATE, 250000U, 4U);
    CHECK(TYPES_ARE(M2JL_TYPE_ACK));
    command(M2JL_COMMAND_START, 0U, 0U);
    seen_count = 0U;
    push(0U, 5U);
    m2jl_device_poll(&device, 10U);
    CHECK((seen_count == 1U) && (seen[0].samples == 5U) && (seen[0].tick == 0U) && (seen[0].boot_id == boot_id));
}

static void chosen_leads_are_sent_alone(void) {
    begin();
    seen_count = 0U;
    command(M2JL_COMMAND_SET_LEADS, 0U, 2U);
    command(M2JL_COMMAND_SET_LEADS, 8U, 2U);
    command(M2JL_COMMAND_SET_LEADS, 5U, 2U); /* the board says no */
    command(M2JL_COMMAND_SET_LEADS, 6U, 1U);
    command(M2JL_COMMAND_SET_LEADS, 7U, 2U);
    for (unsigned i = 0U; i < 4U; i++) {
        CHECK(seen[i].ack.result == M2JL_RESULT_REFUSED);
    }
    CHECK((seen_count == 5U) && (seen[4].ack.result == M2JL_RESULT_OK));
    seen_count = 0U;
    command(M2JL_COMMAND_SET_LEADS, 6U, 2U);
    CHECK(TYPES_ARE(M2JL_TYPE_ACK, M2JL_TYPE_INFO, M2JL_TYPE_STATUS));
    CHECK((seen[1].leads == 2U) && (chosen_leads == 6U));
    command(M2JL_COMMAND_START, 0U, 0U);
    seen_count = 0U;
    const int32_t counts[3] = {1, 2, 40000};
    for (unsigned i = 0U; i < 10U; i++) {
        (void)m2jl_device_push(&device, counts, 3U, 1U);
    }
    m2jl_device_poll(&device, 1U);
    CHECK((seen_count == 1U) && (seen[0].leads == 2U));
    CHECK((seen[0].first_counts[0] == 2) && (seen[0].first_counts[1] == 32767));
    CHECK((seen[0].lead_off == 1U) && (seen[0].saturated == 2U));
}

static void other_commands_and_faults(void) {
    begin();
    seen_count = 0U;
    command(200U, 0x00020100U, 3U);
    CHECK(TYPES_ARE(M2JL_TYPE_ACK));
    CHECK((seen[0].ack.result == M2JL_RESULT_UNKNOWN_COMMAND) && (seen[0].ack.echo.length == 3U));
    command(M2JL_COMMAND_PING, 0x00020100U, 3U);
    CHECK((seen[1].ack.result == M2JL_RESULT_OK) && (seen[1].ack.kind == M2JL_COMMAND_PING));
    seen_count = 0U;
    command(M2JL_COMMAND_HELLO, 0U, 0U);
    CHECK(TYPES_ARE(M2JL_TYPE_ACK, M2JL_TYPE_INFO, M2JL_TYPE_STATUS));
    converter_works = false;
    seen_count = 0U;
    command(M2JL_COMMAND_START, 0U, 0U);
    CHECK(TYPES_ARE(M2JL_TYPE_ACK));
    CHECK(seen[0].ack.result == M2JL_RESULT_REFUSED);
    converter_works = true;
    seen_count = 0U;
    CHECK(m2jl_device_start(&device));
    m2jl_device_poll(&device, 1U);
    CHECK(m2jl_device_error(&device, 3U, "the converter is silent"));
    m2jl_device_stop(&device, M2JL_REASON_FAULT);
    CHECK(m2jl_device_log(&device, M2JL_LEVEL_WARNING, "stopped"));
    m2jl_device_poll(&device, 2U);
    CHECK(TYPES_ARE(M2JL_TYPE_STATUS, M2JL_TYPE_ERROR, M2JL_TYPE_LOG, M2JL_TYPE_STATUS));
    CHECK(seen[3].status.reason == M2JL_REASON_FAULT);
    static const uint8_t noise[] = {0U, 5U, 1U, 0U};
    m2jl_device_feed(&device, noise, sizeof noise);
    m2jl_device_poll(&device, 3000U);
    CHECK(seen[seen_count - 1U].status.bad_frames == 1U);
}

static void a_configuration_that_cannot_be_is_refused(void) {
    begin();
    static const char *const twice[] = {"I", "I", "V1"};
    config.lead_names = twice;
    CHECK(!m2jl_device_init(&device, &config));
    static const char *const cut_alike[] = {"electrode-under-the-left-arm-at-1", "electrode-under-the-left-arm-at-2",
                                            "V1"};
    config.lead_names = cut_alike;
    CHECK(!m2jl_device_init(&device, &config));
    static const char *const empty[] = {"I", "", "V1"};
    config.lead_names = empty;
    CHECK(!m2jl_device_init(&device, &config));
    config.lead_names = lead_names;
    config.leads = 17U;
    CHECK(!m2jl_device_init(&device, &config));
    config.leads = 3U;
    config.bytes_per_sample = 4U;
    CHECK(!m2jl_device_init(&device, &config));
    config.bytes_per_sample = 3U;
    config.rate_millihz = 0U;
    CHECK(!m2jl_device_init(&device, &config));
    config.rate_millihz = M2JL_MAX_RATE_MILLIHZ;
    CHECK(m2jl_device_init(&device, &config));
    config.rate_millihz++;
    CHECK(!m2jl_device_init(&device, &config));
}

int main(void) {
    RUN(it_introduces_itself_at_boot_and_every_second);
    RUN(samples_come_in_frames_of_twenty_milliseconds);
    RUN(what_the_line_cannot_take_is_counted);
    RUN(a_full_line_delays_answers_and_loses_none);
    RUN(samples_that_are_shorter_do_not_keep_an_answer_from_leaving);
    RUN(a_changed_rate_begins_anew);
    RUN(chosen_leads_are_sent_alone);
    RUN(other_commands_and_faults);
    RUN(a_configuration_that_cannot_be_is_refused);
    return (checks_failed == 0) ? 0 : 1;
}
