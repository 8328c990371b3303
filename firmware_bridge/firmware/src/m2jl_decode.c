/* COBS is undone byte by byte as it comes in, so only the packet is kept, never its stuffed form. */
#include <string.h>

#include "m2jl_wire.h"

#define FULL_RUN_CODE 255U

static uint64_t number_at(const uint8_t *bytes, uint8_t size) {
    uint64_t value = 0U;
    for (uint8_t left = size; left > 0U; left--) {
        value = (value << 8U) | bytes[left - 1U];
    }
    return value;
}

static uint16_t u16_at(const uint8_t *bytes) { return (uint16_t)number_at(bytes, 2U); }

static uint32_t u32_at(const uint8_t *bytes) { return (uint32_t)number_at(bytes, 4U); }

/* The counted bytes at the offset, which moves behind them; false if they run over the end. */
static bool take(const uint8_t *payload, size_t length, size_t *offset, uint8_t length_size, m2jl_bytes_t *taken) {
    if ((*offset > length) || ((length - *offset) < length_size)) {
        return false;
    }
    const size_t counted = (size_t)number_at(&payload[*offset], length_size);
    const size_t start = *offset + length_size;
    if ((length - start) < counted) {
        return false;
    }
    taken->bytes = &payload[start];
    taken->length = counted;
    *offset = start + counted;
    return true;
}

/* A code that this version does not know is "other": a newer peer may have more of them. */
static uint8_t known_code(uint8_t code, uint8_t last_known) {
    return (code <= last_known) ? code : UINT8_C(255);
}

static bool read_info(const uint8_t *payload, size_t length, m2jl_info_t *info) {
    if (length < M2JL_INFO_FIXED_BYTES) {
        return false;
    }
    info->boot_id = u16_at(&payload[0]);
    info->rate_millihz = u32_at(&payload[2]);
    info->gain_nv_per_count = u32_at(&payload[6]);
    info->supply_mv = u16_at(&payload[10]);
    info->adc_bits = payload[12];
    info->bytes_per_sample = payload[13];
    info->leads = payload[14];
    bool sound = info->leads <= M2JL_MAX_LEADS;
    size_t offset = M2JL_INFO_FIXED_BYTES;
    for (uint8_t lead = 0U; sound && (lead < info->leads); lead++) {
        sound = take(payload, length, &offset, 1U, &info->lead_names[lead]);
    }
    sound = sound && take(payload, length, &offset, 1U, &info->device_id);
    sound = sound && take(payload, length, &offset, 1U, &info->firmware);
    return sound && m2jl_info_allowed(info);
}

static bool read_samples(const uint8_t *payload, size_t length, m2jl_samples_t *samples) {
    if (length < M2JL_SAMPLES_FIXED_BYTES) {
        return false;
    }
    samples->boot_id = u16_at(&payload[0]);
    samples->lead_off = u16_at(&payload[2]);
    samples->saturated = u16_at(&payload[4]);
    samples->leads = payload[6];
    samples->samples = payload[7];
    samples->bytes_per_sample = payload[8];
    samples->data = &payload[M2JL_SAMPLES_FIXED_BYTES];
    const size_t data_bytes = (size_t)samples->leads * samples->samples * samples->bytes_per_sample;
    return (samples->leads <= M2JL_MAX_LEADS) && (data_bytes != 0U) &&
           (data_bytes <= (length - M2JL_SAMPLES_FIXED_BYTES)) &&
           ((samples->bytes_per_sample == 2U) || (samples->bytes_per_sample == 3U));
}

static bool read_status(const uint8_t *payload, size_t length, m2jl_status_t *status) {
    if (length < M2JL_STATUS_PAYLOAD_BYTES) {
        return false;
    }
    status->boot_id = u16_at(&payload[0]);
    status->streaming = payload[2] != 0U;
    status->reason = known_code(payload[3], M2JL_REASON_FAULT);
    status->frames_sent = u32_at(&payload[4]);
    status->samples_dropped = u32_at(&payload[8]);
    status->bad_frames = u32_at(&payload[12]);
    return true;
}

static bool read_log(const uint8_t *payload, size_t length, m2jl_log_t *log) {
    size_t offset = 1U;
    if (!take(payload, length, &offset, 2U, &log->text)) {
        return false;
    }
    log->level = known_code(payload[0], M2JL_LEVEL_WARNING);
    return true;
}

static bool read_error(const uint8_t *payload, size_t length, m2jl_error_t *error) {
    size_t offset = 2U;
    if (!take(payload, length, &offset, 2U, &error->text)) {
        return false;
    }
    error->code = u16_at(payload);
    return true;
}

static bool read_ack(const uint8_t *payload, size_t length, m2jl_ack_t *ack) {
    size_t offset = 4U;
    if (!take(payload, length, &offset, 1U, &ack->echo)) {
        return false;
    }
    ack->command_id = u16_at(payload);
    ack->kind = payload[2];
    ack->result = known_code(payload[3], M2JL_RESULT_REFUSED);
    return true;
}

static bool read_command(const uint8_t *payload, size_t length, m2jl_command_t *command) {
    size_t offset = 3U;
    if (!take(payload, length, &offset, 1U, &command->argument)) {
        return false;
    }
    command->command_id = u16_at(payload);
    command->kind = payload[2];
    return true;
}

uint8_t m2jl_decode_command(uint8_t type, const uint8_t *payload, size_t length, m2jl_message_t *message) {
    if (type != (uint8_t)M2JL_TYPE_COMMAND) {
        return M2JL_DROP_UNKNOWN_TYPE;
    }
    return read_command(payload, length, &message->command) ? (uint8_t)M2JL_ACCEPTED : (uint8_t)M2JL_DROP_MALFORMED;
}

uint8_t m2jl_decode_any(uint8_t type, const uint8_t *payload, size_t length, m2jl_message_t *message) {
    bool sound = false;
    switch (type) {
    case M2JL_TYPE_INFO:
        sound = read_info(payload, length, &message->info);
        break;
    case M2JL_TYPE_SAMPLES:
        sound = read_samples(payload, length, &message->samples);
        break;
    case M2JL_TYPE_STATUS:
        sound = read_status(payload, length, &message->status);
        break;
    case M2JL_TYPE_LOG:
        sound = read_log(payload, length, &message->log);
        break;
    case M2JL_TYPE_ERROR:
        sound = read_error(payload, length, &message->error);
        break;
    case M2JL_TYPE_ACK:
        sound = read_ack(payload, length, &message->ack);
        break;
    case M2JL_TYPE_COMMAND:
        sound = read_command(payload, length, &message->command);
        break;
    default:
        return M2JL_DROP_UNKNOWN_TYPE;
    }
    return sound ? (uint8_t)M2JL_ACCEPTED : (uint8_t)M2JL_DROP_MALFORMED;
}

int32_t m2jl_samples_count(const m2jl_samples_t *samples, uint8_t lead, uint8_t sample) {
    const size_t index = ((size_t)sample * samples->leads) + lead;
    const uint8_t *bytes = &samples->data[index * samples->bytes_per_sample];
    const int32_t value = (int32_t)number_at(bytes, samples->bytes_per_sample);
    const int32_t limit = (samples->bytes_per_sample == 2U) ? INT32_C(0x8000) : INT32_C(0x800000);
    return (value < limit) ? value : (value - (2 * limit));
}

static void begin_run(m2jl_decoder_t *decoder) {
    decoder->length = 0U;
    decoder->run_length = 0U;
    decoder->code = 0U;
    decoder->code_left = 0U;
    decoder->broken = false;
    decoder->overlong = false;
}

void m2jl_decoder_init(m2jl_decoder_t *decoder, uint8_t *buffer, size_t capacity,
                       m2jl_payload_decoder_t decode_payload) {
    (void)memset(decoder, 0, sizeof *decoder);
    decoder->packet = buffer;
    decoder->capacity = (capacity < M2JL_MAX_PACKET_BYTES) ? capacity : M2JL_MAX_PACKET_BYTES;
    decoder->decode_payload = decode_payload;
    begin_run(decoder);
}

static void keep(m2jl_decoder_t *decoder, uint8_t byte) {
    if (decoder->length < decoder->capacity) {
        decoder->packet[decoder->length] = byte;
        decoder->length++;
    } else {
        decoder->broken = true;
    }
}

static void collect(m2jl_decoder_t *decoder, uint8_t byte) {
    if (decoder->overlong) {
        return;
    }
    if (decoder->run_length == M2JL_STUFFED_BYTES(decoder->capacity)) {
        decoder->overlong = true;
        decoder->dropped[M2JL_DROP_OVERLONG]++;
        return;
    }
    if (decoder->code_left == 0U) {
        if ((decoder->run_length != 0U) && (decoder->code != FULL_RUN_CODE)) {
            keep(decoder, 0U);
        }
        decoder->code = byte;
        decoder->code_left = (uint8_t)(byte - 1U);
    } else {
        keep(decoder, byte);
        decoder->code_left--;
    }
    decoder->run_length++;
}

static uint8_t read_packet(const m2jl_decoder_t *decoder, m2jl_frame_t *frame) {
    if (decoder->broken || (decoder->code_left != 0U) || (decoder->length < M2JL_MIN_PACKET_BYTES)) {
        return M2JL_DROP_FRAMING;
    }
    const uint8_t *packet = decoder->packet;
    const size_t body = decoder->length - M2JL_CRC_BYTES;
    if (m2jl_crc32(0U, packet, body) != u32_at(&packet[body])) {
        return M2JL_DROP_CRC;
    }
    if ((packet[0] >> 4U) != M2JL_VERSION_MAJOR) {
        return M2JL_DROP_VERSION;
    }
    frame->minor_version = packet[0] & 0x0FU;
    frame->type = packet[1];
    frame->sequence = u16_at(&packet[2]);
    frame->tick = number_at(&packet[4], 8U);
    return decoder->decode_payload(frame->type, &packet[M2JL_HEADER_BYTES], body - M2JL_HEADER_BYTES, &frame->message);
}

bool m2jl_decoder_push(m2jl_decoder_t *decoder, uint8_t byte, m2jl_frame_t *frame) {
    bool delivered = false;
    decoder->bytes_received++;
    if (byte != 0U) {
        collect(decoder, byte);
    } else {
        /* An empty run lies between two frames; one that was too long has been counted. */
        if ((decoder->run_length != 0U) && !decoder->overlong) {
            const uint8_t reason = read_packet(decoder, frame);
            delivered = reason == M2JL_ACCEPTED;
            if (delivered) {
                decoder->frames++;
            } else {
                decoder->dropped[reason]++;
            }
        }
        begin_run(decoder);
    }
    return delivered;
}

bool m2jl_decoder_next(m2jl_decoder_t *decoder, const uint8_t *block, size_t length, size_t *position,
                       m2jl_frame_t *frame) {
    bool delivered = false;
    while (!delivered && (*position < length)) {
        delivered = m2jl_decoder_push(decoder, block[*position], frame);
        (*position)++;
    }
    return delivered;
}

uint32_t m2jl_decoder_dropped(const m2jl_decoder_t *decoder) {
    uint32_t total = 0U;
    for (uint8_t reason = 0U; reason < (uint8_t)M2JL_DROP_REASONS; reason++) {
        total += decoder->dropped[reason];
    }
    return total;
}
