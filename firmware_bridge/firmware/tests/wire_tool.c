/* Another implementation's window on this one.  Bytes on standard input are decoded in blocks of as many bytes as the
 * first argument says; every frame becomes a line of JSON with its fields, and is encoded again from them.  Texts and
 * bytes are hexadecimal.  The last line has the counters. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "m2jl_wire.h"

static void print_hex(const char *name, const uint8_t *bytes, size_t length) {
    (void)printf("\"%s\": \"", name);
    for (size_t i = 0U; i < length; i++) {
        (void)printf("%02x", (unsigned)bytes[i]);
    }
    (void)printf("\"");
}

static void print_bytes(const char *name, m2jl_bytes_t bytes) { print_hex(name, bytes.bytes, bytes.length); }

static size_t describe_info(const m2jl_frame_t *frame, uint8_t *wire, size_t capacity) {
    const m2jl_info_t *info = &frame->message.info;
    (void)printf("\"boot_id\": %u, \"rate_millihz\": %lu, \"gain_nv_per_count\": %lu, \"supply_mv\": %u, ",
                 (unsigned)info->boot_id, (unsigned long)info->rate_millihz, (unsigned long)info->gain_nv_per_count,
                 (unsigned)info->supply_mv);
    (void)printf("\"adc_bits\": %u, \"bytes_per_sample\": %u, \"leads\": {", (unsigned)info->adc_bits,
                 (unsigned)info->bytes_per_sample);
    for (uint8_t lead = 0U; lead < info->leads; lead++) {
        char number[8];
        (void)snprintf(number, sizeof number, "%u", (unsigned)lead);
        (void)printf("%s", (lead == 0U) ? "" : ", ");
        print_bytes(number, info->lead_names[lead]);
    }
    (void)printf("}, ");
    print_bytes("device_id", info->device_id);
    (void)printf(", ");
    print_bytes("firmware", info->firmware);
    return m2jl_encode_info(wire, capacity, frame->sequence, frame->tick, info);
}

static size_t describe_samples(const m2jl_frame_t *frame, uint8_t *wire, size_t capacity) {
    static uint8_t data[M2JL_MAX_PAYLOAD_BYTES];
    m2jl_samples_t samples = frame->message.samples;
    size_t used = 0U;
    (void)printf("\"boot_id\": %u, \"lead_off\": %u, \"saturated\": %u, \"leads\": %u, \"bytes_per_sample\": %u, ",
                 (unsigned)samples.boot_id, (unsigned)samples.lead_off, (unsigned)samples.saturated,
                 (unsigned)samples.leads, (unsigned)samples.bytes_per_sample);
    (void)printf("\"counts\": [");
    for (uint8_t sample = 0U; sample < samples.samples; sample++) {
        for (uint8_t lead = 0U; lead < samples.leads; lead++) {
            const int32_t count = m2jl_samples_count(&samples, lead, sample);
            (void)printf("%s%ld", (used == 0U) ? "" : ", ", (long)count);
            (void)m2jl_pack_count(&data[used], count, samples.bytes_per_sample);
            used += samples.bytes_per_sample;
        }
    }
    (void)printf("]");
    samples.data = data;
    return m2jl_encode_samples(wire, capacity, frame->sequence, frame->tick, &samples);
}

static size_t describe_status(const m2jl_frame_t *frame, uint8_t *wire, size_t capacity) {
    const m2jl_status_t *status = &frame->message.status;
    (void)printf("\"boot_id\": %u, \"streaming\": %s, \"reason\": %u, ", (unsigned)status->boot_id,
                 status->streaming ? "true" : "false", (unsigned)status->reason);
    (void)printf("\"frames_sent\": %lu, \"samples_dropped\": %lu, \"bad_frames\": %lu",
                 (unsigned long)status->frames_sent, (unsigned long)status->samples_dropped,
                 (unsigned long)status->bad_frames);
    return m2jl_encode_status(wire, capacity, frame->sequence, frame->tick, status);
}

static size_t describe(const m2jl_frame_t *frame, uint8_t *wire, size_t capacity) {
    const m2jl_message_t *message = &frame->message;
    size_t length = 0U;
    switch (frame->type) {
    case M2JL_TYPE_INFO:
        length = describe_info(frame, wire, capacity);
        break;
    case M2JL_TYPE_SAMPLES:
        length = describe_samples(frame, wire, capacity);
        break;
    case M2JL_TYPE_STATUS:
        length = describe_status(frame, wire, capacity);
        break;
    case M2JL_TYPE_LOG:
        (void)printf("\"level\": %u, ", (unsigned)message->log.level);
        print_bytes("text", message->log.text);
        length = m2jl_encode_log(wire, capacity, frame->sequence, frame->tick, &message->log);
        break;
    case M2JL_TYPE_ERROR:
        (void)printf("\"code\": %u, ", (unsigned)message->error.code);
        print_bytes("text", message->error.text);
        length = m2jl_encode_error(wire, capacity, frame->sequence, frame->tick, &message->error);
        break;
    case M2JL_TYPE_ACK:
        (void)printf("\"command_id\": %u, \"kind\": %u, \"result\": %u, ", (unsigned)message->ack.command_id,
                     (unsigned)message->ack.kind, (unsigned)message->ack.result);
        print_bytes("echo", message->ack.echo);
        length = m2jl_encode_ack(wire, capacity, frame->sequence, frame->tick, &message->ack);
        break;
    case M2JL_TYPE_COMMAND:
        (void)printf("\"command_id\": %u, \"kind\": %u, ", (unsigned)message->command.command_id,
                     (unsigned)message->command.kind);
        print_bytes("argument", message->command.argument);
        length = m2jl_encode_command(wire, capacity, frame->sequence, &message->command);
        break;
    default:
        break;
    }
    return length;
}

int main(int argument_count, char **arguments) {
    static uint8_t packet[M2JL_MAX_PACKET_BYTES];
    static uint8_t wire[M2JL_MAX_FRAME_BYTES];
    m2jl_decoder_t decoder;
    m2jl_frame_t frame;
    const size_t block_bytes = (argument_count > 1) ? (size_t)strtoul(arguments[1], NULL, 10) : 4096U;
    uint8_t *block = malloc(block_bytes);
    if (block == NULL) {
        return 1;
    }
    m2jl_decoder_init(&decoder, packet, sizeof packet, m2jl_decode_any);
    size_t length = fread(block, 1U, block_bytes, stdin);
    while (length > 0U) {
        size_t position = 0U;
        while (m2jl_decoder_next(&decoder, block, length, &position, &frame)) {
            (void)printf("{\"type\": %u, \"sequence\": %u, \"tick\": %llu, \"minor_version\": %u, \"fields\": {",
                         (unsigned)frame.type, (unsigned)frame.sequence, (unsigned long long)frame.tick,
                         (unsigned)frame.minor_version);
            const size_t wire_bytes = describe(&frame, wire, sizeof wire);
            (void)printf("}, ");
            print_hex("wire", wire, wire_bytes);
            (void)printf("}\n");
        }
        length = fread(block, 1U, block_bytes, stdin);
    }
    free(block);
    (void)printf("{\"overlong\": %lu, \"framing\": %lu, \"crc\": %lu, \"version\": %lu, ",
                 (unsigned long)decoder.dropped[M2JL_DROP_OVERLONG], (unsigned long)decoder.dropped[M2JL_DROP_FRAMING],
                 (unsigned long)decoder.dropped[M2JL_DROP_CRC], (unsigned long)decoder.dropped[M2JL_DROP_VERSION]);
    (void)printf("\"unknown_type\": %lu, \"malformed\": %lu}\n",
                 (unsigned long)decoder.dropped[M2JL_DROP_UNKNOWN_TYPE],
                 (unsigned long)decoder.dropped[M2JL_DROP_MALFORMED]);
    return 0;
}
