/* One interrupt fills slots, the main loop sends them.  A slot belongs to one of the two at a time, and its state says
 * to which: that is all the locking there is. */
#include "m2jl_device.h"

#include <string.h>

/* What was written before it is in memory before what comes after it; on one core only the compiler must be told. */
#ifndef M2JL_BARRIER
#if defined(__GNUC__)
#define M2JL_BARRIER() __asm__ volatile("" ::: "memory")
#else
#error "Define M2JL_BARRIER() to what keeps your compiler from moving memory accesses across it"
#endif
#endif

#define SLOT_FREE 0U    /* the interrupt's */
#define SLOT_FILLING 1U /* the interrupt's */
#define SLOT_READY 2U   /* the main loop's */

#define ANNOUNCE_MS 1000U

static uint8_t next_slot(uint8_t slot) { return (uint8_t)((slot + 1U) % M2JL_DEVICE_SLOTS); }

static m2jl_bytes_t text_of(const char *text, size_t limit) {
    m2jl_bytes_t bytes;
    bytes.bytes = (const uint8_t *)text;
    bytes.length = 0U;
    while ((bytes.length < limit) && (text[bytes.length] != '\0')) {
        bytes.length++;
    }
    return bytes;
}

static bool has_lead(uint16_t mask, uint8_t lead) { return (((uint32_t)mask >> lead) & 1U) != 0U; }

static uint8_t count_leads(uint16_t mask) {
    uint8_t leads = 0U;
    for (uint16_t rest = mask; rest != 0U; rest &= (uint16_t)(rest - 1U)) {
        leads++;
    }
    return leads;
}

/* The bits of the physical leads that are sent, moved together. */
static uint16_t chosen_bits(uint16_t bits, uint16_t mask) {
    uint16_t chosen = 0U;
    uint8_t position = 0U;
    for (uint8_t lead = 0U; lead < M2JL_MAX_LEADS; lead++) {
        if (has_lead(mask, lead)) {
            chosen |= (uint16_t)((((uint32_t)bits >> lead) & 1U) << position);
            position++;
        }
    }
    return chosen;
}

/* The first sample that is not sent yet.  The interrupt may come in between, and then it is looked up again. */
static uint64_t next_tick(const m2jl_device_t *device) {
    uint64_t before;
    uint64_t tick;
    do {
        before = device->tick;
        M2JL_BARRIER();
        const m2jl_device_slot_t *oldest = &device->slots[device->tail];
        tick = (oldest->state == SLOT_FREE) ? before : oldest->tick;
        M2JL_BARRIER();
    } while (before != device->tick);
    return tick;
}

static bool finish_send(m2jl_device_t *device, size_t length) {
    const m2jl_device_config_t *config = device->config;
    const bool sent = (length != 0U) && config->send(config->context, device->tx, length);
    if (sent) {
        device->sequence++;
        device->frames_sent++;
    }
    return sent;
}

static void apply_settings(m2jl_device_t *device, uint32_t rate_millihz, uint16_t lead_mask) {
    const m2jl_device_config_t *config = device->config;
    const uint32_t rate_hz = (rate_millihz / 1000U) + (((rate_millihz % 1000U) >= 500U) ? 1U : 0U);
    device->rate_millihz = rate_millihz;
    device->lead_mask = lead_mask;
    device->leads = count_leads(lead_mask);
    const uint32_t sample_bytes = (uint32_t)device->leads * config->bytes_per_sample;
    uint32_t samples = ((rate_hz * config->frame_ms) + 500U) / 1000U;
    if (samples > (M2JL_DEVICE_DATA_BYTES / sample_bytes)) {
        samples = M2JL_DEVICE_DATA_BYTES / sample_bytes;
    }
    if (samples > 255U) {
        samples = 255U;
    }
    device->samples_per_frame = (samples == 0U) ? UINT8_C(1) : (uint8_t)samples;
}

/* Names over 32 bytes are taken to be full here; the encoder may cut them shorter, between characters. */
static size_t info_payload_bytes(const m2jl_device_config_t *config) {
    size_t bytes = M2JL_INFO_FIXED_BYTES + 2U + text_of(config->device_id, M2JL_MAX_NAME_BYTES).length +
                   text_of(config->firmware, M2JL_MAX_NAME_BYTES).length;
    for (uint8_t lead = 0U; lead < config->leads; lead++) {
        bytes += 1U + text_of(config->lead_names[lead], M2JL_MAX_NAME_BYTES).length;
    }
    return bytes;
}

static size_t encode_info(m2jl_device_t *device) {
    const m2jl_device_config_t *config = device->config;
    m2jl_info_t info;
    uint8_t position = 0U;
    info.boot_id = device->boot_id;
    info.rate_millihz = device->rate_millihz;
    info.gain_nv_per_count = config->gain_nv_per_count;
    info.supply_mv = device->supply_mv;
    info.adc_bits = config->adc_bits;
    info.bytes_per_sample = config->bytes_per_sample;
    info.leads = device->leads;
    for (uint8_t lead = 0U; lead < config->leads; lead++) {
        if (has_lead(device->lead_mask, lead)) {
            info.lead_names[position] = text_of(config->lead_names[lead], M2JL_MAX_NAME_BYTES + 1U);
            position++;
        }
    }
    info.device_id = text_of(config->device_id, M2JL_MAX_NAME_BYTES + 1U);
    info.firmware = text_of(config->firmware, M2JL_MAX_NAME_BYTES + 1U);
    return m2jl_encode_info(device->tx, sizeof device->tx, device->sequence, next_tick(device), &info);
}

bool m2jl_device_init(m2jl_device_t *device, const m2jl_device_config_t *config) {
    (void)memset(device, 0, sizeof *device);
    if ((config->leads == 0U) || (config->leads > M2JL_MAX_LEADS) ||
        ((config->bytes_per_sample != 2U) && (config->bytes_per_sample != 3U)) ||
        (((size_t)config->leads * config->bytes_per_sample) > M2JL_DEVICE_DATA_BYTES) ||
        (info_payload_bytes(config) > M2JL_DEVICE_PAYLOAD_BYTES)) {
        return false;
    }
    device->config = config;
    device->boot_id = config->boot_id;
    device->reason = M2JL_REASON_POWER_ON;
    apply_settings(device, config->rate_millihz, (uint16_t)((UINT32_C(1) << config->leads) - 1U));
    m2jl_decoder_init(&device->decoder, device->rx, sizeof device->rx, m2jl_decode_command);
    return encode_info(device) != 0U; /* refuses what no INFO may say, such as two leads of one name */
}

bool m2jl_device_push(m2jl_device_t *device, const int32_t *counts, uint16_t lead_off, uint16_t saturated) {
    if (!device->streaming) {
        return false;
    }
    const m2jl_device_config_t *config = device->config;
    m2jl_device_slot_t *slot = &device->slots[device->head];
    if (slot->state == SLOT_FREE) {
        slot->tick = device->tick;
        slot->used = 0U;
        slot->samples = 0U;
        slot->lead_off = 0U;
        slot->saturated = 0U;
        M2JL_BARRIER();
        slot->state = SLOT_FILLING;
    }
    const bool kept = slot->state == SLOT_FILLING;
    if (kept) {
        uint16_t at_limit = saturated;
        for (uint8_t lead = 0U; lead < config->leads; lead++) {
            if (has_lead(device->lead_mask, lead)) {
                if (!m2jl_pack_count(&slot->data[slot->used], counts[lead], config->bytes_per_sample)) {
                    at_limit |= (uint16_t)(UINT32_C(1) << lead);
                }
                slot->used = (uint16_t)(slot->used + config->bytes_per_sample);
            }
        }
        slot->lead_off |= lead_off;
        slot->saturated |= at_limit;
        slot->samples++;
        if (slot->samples == device->samples_per_frame) {
            M2JL_BARRIER();
            slot->state = SLOT_READY;
            device->head = next_slot(device->head);
        }
    } else {
        device->samples_dropped++;
    }
    device->tick++;
    return kept;
}

static bool send_samples(m2jl_device_t *device) {
    m2jl_device_slot_t *slot = &device->slots[device->tail];
    if (slot->state != SLOT_READY) {
        return false;
    }
    M2JL_BARRIER();
    m2jl_samples_t samples;
    samples.boot_id = device->boot_id;
    samples.lead_off = chosen_bits(slot->lead_off, device->lead_mask);
    samples.saturated = chosen_bits(slot->saturated, device->lead_mask);
    samples.leads = device->leads;
    samples.samples = slot->samples;
    samples.bytes_per_sample = device->config->bytes_per_sample;
    samples.data = slot->data;
    const bool sent = finish_send(
        device, m2jl_encode_samples(device->tx, sizeof device->tx, device->sequence, slot->tick, &samples));
    if (sent) {
        device->tail = next_slot(device->tail);
        M2JL_BARRIER();
        slot->state = SLOT_FREE;
    }
    return sent;
}

static bool send_info(m2jl_device_t *device) { return finish_send(device, encode_info(device)); }

static bool send_status(m2jl_device_t *device) {
    m2jl_status_t status;
    status.boot_id = device->boot_id;
    status.streaming = device->streaming;
    status.reason = device->reason;
    status.frames_sent = device->frames_sent;
    status.samples_dropped = device->samples_dropped;
    status.bad_frames = m2jl_decoder_dropped(&device->decoder) - device->bad_frames_before;
    return finish_send(
        device, m2jl_encode_status(device->tx, sizeof device->tx, device->sequence, next_tick(device), &status));
}

static bool send_ack(m2jl_device_t *device) {
    return finish_send(
        device, m2jl_encode_ack(device->tx, sizeof device->tx, device->sequence, next_tick(device), &device->ack));
}

/* As after a boot, with the settings that were asked for.  The step visits all boot ids before it repeats one. */
static void begin_anew(m2jl_device_t *device) {
    device->boot_id = (uint16_t)((device->boot_id * UINT32_C(25173)) + 13849U);
    device->tick = 0U;
    device->samples_dropped = 0U;
    device->frames_sent = 0U;
    device->bad_frames_before = m2jl_decoder_dropped(&device->decoder);
    device->reason = M2JL_REASON_COMMAND;
    apply_settings(device, device->new_rate_millihz, device->new_lead_mask);
    device->begin_anew = false;
    device->info_pending = true;
    device->status_pending = true;
}

/* The answer to a command comes first, then INFO, then STATUS. */
static void send_answers(m2jl_device_t *device) {
    if (device->ack_pending && send_ack(device)) {
        device->ack_pending = false;
        if (device->begin_anew) {
            begin_anew(device);
        }
    }
    if (!device->ack_pending && device->info_pending && send_info(device)) {
        device->info_pending = false;
    }
    if (!device->ack_pending && !device->info_pending && device->status_pending && send_status(device)) {
        device->status_pending = false;
    }
}

static void send_what_waits(m2jl_device_t *device) {
    if (device->streaming) {
        send_answers(device); /* first, or a line that is too slow for the samples would never let one through */
        if (device->ack_pending || device->info_pending || device->status_pending) {
            return; /* nor would it where SAMPLES are shorter and take the room again and again */
        }
    }
    bool sent = true;
    while (sent) {
        sent = send_samples(device);
    }
    /* A stopped device says so behind its last samples. */
    if (!device->streaming && (device->slots[device->tail].state == SLOT_FREE)) {
        send_answers(device);
    }
}

bool m2jl_device_start(m2jl_device_t *device) {
    const m2jl_device_config_t *config = device->config;
    if (device->streaming) {
        return true;
    }
    if (device->begin_anew || ((config->set_streaming != NULL) && !config->set_streaming(config->context, true))) {
        return false;
    }
    device->reason = M2JL_REASON_NONE;
    device->status_pending = true;
    M2JL_BARRIER();
    device->streaming = true;
    return true;
}

void m2jl_device_stop(m2jl_device_t *device, uint8_t reason) {
    const m2jl_device_config_t *config = device->config;
    if (!device->streaming) {
        return;
    }
    device->streaming = false;
    M2JL_BARRIER();
    if (config->set_streaming != NULL) {
        (void)config->set_streaming(config->context, false);
    }
    /* The interrupt lets go of the slots once the device is stopped, so the begun one can be sent as it is. */
    m2jl_device_slot_t *begun = &device->slots[device->head];
    if (begun->state == SLOT_FILLING) {
        begun->state = SLOT_READY;
        device->head = next_slot(device->head);
    }
    device->reason = reason;
    device->status_pending = true;
}

static uint32_t argument_number(m2jl_bytes_t argument, uint8_t size) {
    uint32_t value = 0U;
    for (uint32_t i = 0U; i < size; i++) {
        value |= (uint32_t)argument.bytes[i] << (8U * i);
    }
    return value;
}

static bool set_rate(m2jl_device_t *device, m2jl_bytes_t argument) {
    const m2jl_device_config_t *config = device->config;
    if (device->streaming || (argument.length < 4U)) {
        return false;
    }
    const uint32_t rate_millihz = argument_number(argument, 4U);
    if (rate_millihz == device->rate_millihz) {
        return true;
    }
    if ((rate_millihz == 0U) || (rate_millihz > M2JL_MAX_RATE_MILLIHZ) || (config->set_rate == NULL) ||
        !config->set_rate(config->context, rate_millihz)) {
        return false;
    }
    device->new_rate_millihz = rate_millihz;
    device->new_lead_mask = device->lead_mask;
    device->begin_anew = true;
    return true;
}

static bool set_leads(m2jl_device_t *device, m2jl_bytes_t argument) {
    const m2jl_device_config_t *config = device->config;
    if (device->streaming || (argument.length < 2U)) {
        return false;
    }
    const uint16_t mask = (uint16_t)argument_number(argument, 2U);
    if (mask == device->lead_mask) {
        return true;
    }
    if ((mask == 0U) || (((uint32_t)mask >> config->leads) != 0U) ||
        ((config->set_leads != NULL) && !config->set_leads(config->context, mask))) {
        return false;
    }
    device->new_rate_millihz = device->rate_millihz;
    device->new_lead_mask = mask;
    device->begin_anew = true;
    return true;
}

static void obey(m2jl_device_t *device, const m2jl_command_t *command) {
    bool done = true;
    bool known = true;
    switch (command->kind) {
    case M2JL_COMMAND_HELLO:
        device->info_pending = true;
        device->status_pending = true;
        break;
    case M2JL_COMMAND_START:
        done = m2jl_device_start(device);
        break;
    case M2JL_COMMAND_STOP:
        m2jl_device_stop(device, M2JL_REASON_COMMAND);
        break;
    case M2JL_COMMAND_PING:
        break;
    case M2JL_COMMAND_SET_RATE:
        done = set_rate(device, command->argument);
        break;
    case M2JL_COMMAND_SET_LEADS:
        done = set_leads(device, command->argument);
        break;
    default:
        known = false;
        break;
    }
    device->ack.command_id = command->command_id;
    device->ack.kind = command->kind;
    if (!known) {
        device->ack.result = M2JL_RESULT_UNKNOWN_COMMAND;
    } else {
        device->ack.result = done ? UINT8_C(0) : (uint8_t)M2JL_RESULT_REFUSED;
    }
    (void)memcpy(device->echo, command->argument.bytes, command->argument.length);
    device->ack.echo.bytes = device->echo;
    device->ack.echo.length = command->argument.length;
    device->ack_pending = true;
}

void m2jl_device_feed(m2jl_device_t *device, const uint8_t *bytes, size_t length) {
    m2jl_frame_t frame;
    size_t position = 0U;
    while (m2jl_decoder_next(&device->decoder, bytes, length, &position, &frame)) {
        const m2jl_command_t *command = &frame.message.command;
        /* While an answer waits for the line, a command is left to the host's repetition.  So is one whose argument no
         * answer could return. */
        if (!device->ack_pending && (command->argument.length <= M2JL_MAX_ARGUMENT_BYTES)) {
            obey(device, command);
            send_what_waits(device);
        }
    }
}

void m2jl_device_poll(m2jl_device_t *device, uint32_t now_ms) {
    if (!device->announced || ((uint32_t)(now_ms - device->announced_ms) >= ANNOUNCE_MS)) {
        device->announced = true;
        device->announced_ms = now_ms;
        device->info_pending = true;
        device->status_pending = true;
    }
    send_what_waits(device);
}

void m2jl_device_set_supply(m2jl_device_t *device, uint16_t supply_mv) { device->supply_mv = supply_mv; }

/* A text is counted with two bytes, behind a level or a code of at most two.  What one frame does not hold is cut off,
 * between characters. */
static m2jl_bytes_t fitting_text(const char *text) {
    const size_t limit = ((M2JL_DEVICE_PAYLOAD_BYTES - 4U) < M2JL_MAX_TEXT_BYTES) ? (M2JL_DEVICE_PAYLOAD_BYTES - 4U)
                                                                                : M2JL_MAX_TEXT_BYTES;
    return m2jl_cut_text(text_of(text, limit + 1U), limit);
}

bool m2jl_device_log(m2jl_device_t *device, uint8_t level, const char *text) {
    m2jl_log_t log;
    log.level = level;
    log.text = fitting_text(text);
    return finish_send(device,
                       m2jl_encode_log(device->tx, sizeof device->tx, device->sequence, next_tick(device), &log));
}

bool m2jl_device_error(m2jl_device_t *device, uint16_t code, const char *text) {
    m2jl_error_t error;
    error.code = code;
    error.text = fitting_text(text);
    return finish_send(
        device, m2jl_encode_error(device->tx, sizeof device->tx, device->sequence, next_tick(device), &error));
}
