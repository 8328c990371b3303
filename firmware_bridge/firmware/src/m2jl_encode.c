/* Frames are written in one pass: every byte goes through the CRC and the COBS encoder straight into the caller's
 * buffer, so no second buffer for the payload is needed. */
#include <string.h>

#include "m2jl_wire.h"

#define FULL_RUN_CODE 255U

typedef struct {
    uint8_t *out;
    size_t capacity;
    size_t length;
    size_t code_at; /* where the code of the run being written will go */
    uint32_t crc;
    uint8_t code;
    bool after_full_run;
    bool overflow;
} writer_t;

static void put_raw(writer_t *writer, uint8_t byte) {
    if (writer->length < writer->capacity) {
        writer->out[writer->length] = byte;
        writer->length++;
    } else {
        writer->overflow = true;
    }
}

static void open_run(writer_t *writer) {
    writer->code_at = writer->length;
    writer->code = 1U;
    put_raw(writer, 0U);
}

static void close_run(writer_t *writer) {
    if (!writer->overflow) {
        writer->out[writer->code_at] = writer->code;
    }
}

static void put_stuffed(writer_t *writer, const uint8_t *bytes, size_t length) {
    for (size_t i = 0U; i < length; i++) {
        writer->after_full_run = false;
        if (bytes[i] == 0U) {
            close_run(writer);
            open_run(writer);
        } else {
            put_raw(writer, bytes[i]);
            writer->code++;
            if (writer->code == FULL_RUN_CODE) {
                close_run(writer);
                open_run(writer);
                writer->after_full_run = true;
            }
        }
    }
}

static void put_bytes(writer_t *writer, const uint8_t *bytes, size_t length) {
    writer->crc = m2jl_crc32(writer->crc, bytes, length);
    put_stuffed(writer, bytes, length);
}

static void put_number(writer_t *writer, uint64_t value, uint8_t size) {
    uint8_t bytes[8];
    uint64_t rest = value;
    for (uint8_t i = 0U; i < size; i++) {
        bytes[i] = (uint8_t)(rest & 0xFFU);
        rest >>= 8U;
    }
    put_bytes(writer, bytes, size);
}

m2jl_bytes_t m2jl_cut_text(m2jl_bytes_t text, size_t limit) {
    m2jl_bytes_t cut = text;
    if (cut.length > limit) {
        cut.length = limit;
        while ((cut.length > 0U) && ((cut.bytes[cut.length] & 0xC0U) == 0x80U)) {
            cut.length--;
        }
    }
    return cut;
}

static void put_text(writer_t *writer, m2jl_bytes_t text, size_t limit, uint8_t length_size) {
    const m2jl_bytes_t cut = m2jl_cut_text(text, limit);
    put_number(writer, cut.length, length_size);
    put_bytes(writer, cut.bytes, cut.length);
}

static writer_t begin(uint8_t *out, size_t capacity, uint8_t type, uint16_t sequence, uint64_t tick) {
    writer_t writer;
    (void)memset(&writer, 0, sizeof writer);
    writer.out = out;
    writer.capacity = capacity;
    put_raw(&writer, 0U);
    open_run(&writer);
    put_number(&writer, (M2JL_VERSION_MAJOR << 4U) | M2JL_VERSION_MINOR, 1U);
    put_number(&writer, type, 1U);
    put_number(&writer, sequence, 2U);
    put_number(&writer, tick, 8U);
    return writer;
}

static size_t end(writer_t *writer) {
    put_number(writer, writer->crc, 4U);
    if (writer->after_full_run) {
        writer->length = writer->code_at; /* a full run that ends the packet is complete by itself */
    } else {
        close_run(writer);
    }
    put_raw(writer, 0U);
    return writer->overflow ? 0U : writer->length;
}

/* Names are compared as they are sent. */
static bool different_names(const m2jl_info_t *info) {
    bool different = true;
    for (uint8_t lead = 0U; different && (lead < info->leads); lead++) {
        const m2jl_bytes_t name = m2jl_cut_text(info->lead_names[lead], M2JL_MAX_NAME_BYTES);
        different = name.length != 0U;
        for (uint8_t other = 0U; different && (other < lead); other++) {
            const m2jl_bytes_t before = m2jl_cut_text(info->lead_names[other], M2JL_MAX_NAME_BYTES);
            different = (name.length != before.length) || (memcmp(name.bytes, before.bytes, name.length) != 0);
        }
    }
    return different;
}

bool m2jl_info_allowed(const m2jl_info_t *info) {
    return (info->rate_millihz != 0U) && (info->rate_millihz <= M2JL_MAX_RATE_MILLIHZ) &&
           (info->gain_nv_per_count != 0U) && (info->leads >= 1U) && (info->leads <= M2JL_MAX_LEADS) &&
           ((info->bytes_per_sample == 2U) || (info->bytes_per_sample == 3U)) && different_names(info);
}

size_t m2jl_encode_info(uint8_t *out, size_t capacity, uint16_t sequence, uint64_t tick, const m2jl_info_t *info) {
    if (!m2jl_info_allowed(info)) {
        return 0U;
    }
    writer_t writer = begin(out, capacity, M2JL_TYPE_INFO, sequence, tick);
    put_number(&writer, info->boot_id, 2U);
    put_number(&writer, info->rate_millihz, 4U);
    put_number(&writer, info->gain_nv_per_count, 4U);
    put_number(&writer, info->supply_mv, 2U);
    put_number(&writer, info->adc_bits, 1U);
    put_number(&writer, info->bytes_per_sample, 1U);
    put_number(&writer, info->leads, 1U);
    for (uint8_t lead = 0U; lead < info->leads; lead++) {
        put_text(&writer, info->lead_names[lead], M2JL_MAX_NAME_BYTES, 1U);
    }
    put_text(&writer, info->device_id, M2JL_MAX_NAME_BYTES, 1U);
    put_text(&writer, info->firmware, M2JL_MAX_NAME_BYTES, 1U);
    return end(&writer);
}

size_t m2jl_encode_samples(uint8_t *out, size_t capacity, uint16_t sequence, uint64_t tick,
                           const m2jl_samples_t *samples) {
    const size_t data_bytes = (size_t)samples->leads * samples->samples * samples->bytes_per_sample;
    if ((samples->leads > M2JL_MAX_LEADS) || (data_bytes == 0U) ||
        (data_bytes > (M2JL_MAX_PAYLOAD_BYTES - M2JL_SAMPLES_FIXED_BYTES)) ||
        ((samples->bytes_per_sample != 2U) && (samples->bytes_per_sample != 3U))) {
        return 0U;
    }
    writer_t writer = begin(out, capacity, M2JL_TYPE_SAMPLES, sequence, tick);
    put_number(&writer, samples->boot_id, 2U);
    put_number(&writer, samples->lead_off, 2U);
    put_number(&writer, samples->saturated, 2U);
    put_number(&writer, samples->leads, 1U);
    put_number(&writer, samples->samples, 1U);
    put_number(&writer, samples->bytes_per_sample, 1U);
    put_number(&writer, 0U, 1U);
    put_bytes(&writer, samples->data, data_bytes);
    return end(&writer);
}

size_t m2jl_encode_status(uint8_t *out, size_t capacity, uint16_t sequence, uint64_t tick,
                          const m2jl_status_t *status) {
    writer_t writer = begin(out, capacity, M2JL_TYPE_STATUS, sequence, tick);
    put_number(&writer, status->boot_id, 2U);
    put_number(&writer, status->streaming ? 1U : 0U, 1U);
    put_number(&writer, status->reason, 1U);
    put_number(&writer, status->frames_sent, 4U);
    put_number(&writer, status->samples_dropped, 4U);
    put_number(&writer, status->bad_frames, 4U);
    return end(&writer);
}

size_t m2jl_encode_log(uint8_t *out, size_t capacity, uint16_t sequence, uint64_t tick, const m2jl_log_t *log) {
    writer_t writer = begin(out, capacity, M2JL_TYPE_LOG, sequence, tick);
    put_number(&writer, log->level, 1U);
    put_text(&writer, log->text, M2JL_MAX_TEXT_BYTES, 2U);
    return end(&writer);
}

size_t m2jl_encode_error(uint8_t *out, size_t capacity, uint16_t sequence, uint64_t tick, const m2jl_error_t *error) {
    writer_t writer = begin(out, capacity, M2JL_TYPE_ERROR, sequence, tick);
    put_number(&writer, error->code, 2U);
    put_text(&writer, error->text, M2JL_MAX_TEXT_BYTES, 2U);
    return end(&writer);
}

size_t m2jl_encode_ack(uint8_t *out, size_t capacity, uint16_t sequence, uint64_t tick, const m2jl_ack_t *ack) {
    if (ack->echo.length > M2JL_MAX_ARGUMENT_BYTES) {
        return 0U;
    }
    writer_t writer = begin(out, capacity, M2JL_TYPE_ACK, sequence, tick);
    put_number(&writer, ack->command_id, 2U);
    put_number(&writer, ack->kind, 1U);
    put_number(&writer, ack->result, 1U);
    put_number(&writer, ack->echo.length, 1U);
    put_bytes(&writer, ack->echo.bytes, ack->echo.length);
    return end(&writer);
}

size_t m2jl_encode_command(uint8_t *out, size_t capacity, uint16_t sequence, const m2jl_command_t *command) {
    if (command->argument.length > M2JL_MAX_ARGUMENT_BYTES) {
        return 0U;
    }
    writer_t writer = begin(out, capacity, M2JL_TYPE_COMMAND, sequence, 0U);
    put_number(&writer, command->command_id, 2U);
    put_number(&writer, command->kind, 1U);
    put_number(&writer, command->argument.length, 1U);
    put_bytes(&writer, command->argument.bytes, command->argument.length);
    return end(&writer);
}

bool m2jl_pack_count(uint8_t *out, int32_t count, uint8_t bytes_per_sample) {
    const int32_t highest = (bytes_per_sample == 2U) ? INT32_C(0x7FFF) : INT32_C(0x7FFFFF);
    const int32_t lowest = -highest - 1;
    int32_t clipped = count;
    if (count > highest) {
        clipped = highest;
    } else if (count < lowest) {
        clipped = lowest;
    } else {
        /* fits */
    }
    const uint32_t bits = (uint32_t)clipped;
    out[0] = (uint8_t)(bits & 0xFFU);
    out[1] = (uint8_t)((bits >> 8U) & 0xFFU);
    if (bytes_per_sample != 2U) {
        out[2] = (uint8_t)((bits >> 16U) & 0xFFU);
    }
    return (count > lowest) && (count < highest);
}
