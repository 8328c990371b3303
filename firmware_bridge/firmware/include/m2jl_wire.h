/**
 * @file m2jl_wire.h
 * @brief The wire protocol of M2JLNet Edge, version 1.1: frames and messages, both directions.
 *
 * One call makes a whole frame in the caller's buffer:
 *
 *     uint8_t out[M2JL_FRAME_BYTES(M2JL_STATUS_PAYLOAD_BYTES)];
 *     size_t length = m2jl_encode_status(out, sizeof out, sequence, tick, &status);
 *
 * A decoder finds frames in a stream of bytes that may be cut anywhere, damaged, or never have been frames at all:
 *
 *     if (m2jl_decoder_push(&decoder, byte, &frame) && frame.type == M2JL_TYPE_COMMAND) { ... }
 *
 * No heap, no recursion, no global state; every function may be called from an interrupt as long as no two calls share
 * an object. All numbers on the wire are little-endian whatever the processor is.
 *
 * M2JLNet Edge is a tool for research and decision support. It is not a medical device.
 */
#ifndef M2JL_WIRE_H
#define M2JL_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define M2JL_VERSION_MAJOR 1U
#define M2JL_VERSION_MINOR 1U

#define M2JL_HEADER_BYTES 12U
#define M2JL_CRC_BYTES 4U
#define M2JL_MAX_PAYLOAD_BYTES 1024U
/** A packet is header, payload and CRC, before stuffing. */
#define M2JL_MIN_PACKET_BYTES (M2JL_HEADER_BYTES + M2JL_CRC_BYTES)
#define M2JL_MAX_PACKET_BYTES (M2JL_MIN_PACKET_BYTES + M2JL_MAX_PAYLOAD_BYTES)
/** Bytes that a packet takes at worst once stuffed, without delimiters. */
#define M2JL_STUFFED_BYTES(packet) ((packet) + ((packet) / 254U) + 1U)
/** Bytes on the wire, at worst, of a frame with a payload of so many bytes, both delimiters included. */
#define M2JL_FRAME_BYTES(payload) (M2JL_STUFFED_BYTES(M2JL_MIN_PACKET_BYTES + (payload)) + 2U)
#define M2JL_MAX_FRAME_BYTES M2JL_FRAME_BYTES(M2JL_MAX_PAYLOAD_BYTES)

#define M2JL_INFO_FIXED_BYTES 15U
#define M2JL_SAMPLES_FIXED_BYTES 10U
#define M2JL_STATUS_PAYLOAD_BYTES 16U
#define M2JL_MAX_COMMAND_PAYLOAD_BYTES (4U + M2JL_MAX_ARGUMENT_BYTES)
#define M2JL_MAX_ACK_PAYLOAD_BYTES (5U + M2JL_MAX_ARGUMENT_BYTES)

#define M2JL_MAX_LEADS 16U
#define M2JL_MAX_NAME_BYTES 32U
#define M2JL_MAX_TEXT_BYTES 512U
#define M2JL_MAX_ARGUMENT_BYTES 64U
#define M2JL_MAX_RATE_MILLIHZ UINT32_C(32000000)

/** The type byte of the header. From the device below 0x80, to the device from there on. */
enum {
    M2JL_TYPE_INFO = 0x01,
    M2JL_TYPE_SAMPLES = 0x02,
    M2JL_TYPE_STATUS = 0x03,
    M2JL_TYPE_LOG = 0x04,
    M2JL_TYPE_ERROR = 0x05,
    M2JL_TYPE_ACK = 0x06,
    M2JL_TYPE_COMMAND = 0x81
};

/** Why a device does not stream. A code that this version does not know is read as OTHER, here and below. */
enum {
    M2JL_REASON_NONE = 0,
    M2JL_REASON_POWER_ON = 1,
    M2JL_REASON_COMMAND = 2,
    M2JL_REASON_END_OF_RECORDING = 3,
    M2JL_REASON_FAULT = 4,
    M2JL_REASON_OTHER = 255
};

enum { M2JL_RESULT_OK = 0, M2JL_RESULT_UNKNOWN_COMMAND = 1, M2JL_RESULT_REFUSED = 2, M2JL_RESULT_OTHER = 255 };

enum { M2JL_LEVEL_DEBUG = 0, M2JL_LEVEL_INFO = 1, M2JL_LEVEL_WARNING = 2, M2JL_LEVEL_OTHER = 255 };

enum {
    M2JL_COMMAND_HELLO = 1,
    M2JL_COMMAND_START = 2,
    M2JL_COMMAND_STOP = 3,
    M2JL_COMMAND_PING = 4,
    /** Argument: u32, the rate in mHz. */
    M2JL_COMMAND_SET_RATE = 5,
    /** Argument: u16, a bit for every lead of the INFO at boot, bit 0 for the first. */
    M2JL_COMMAND_SET_LEADS = 6
};

/** Counted bytes that belong to someone else. In a decoded frame they lie in the decoder's buffer. */
typedef struct {
    const uint8_t *bytes;
    size_t length;
} m2jl_bytes_t;

/** What the device is and what its samples mean. */
typedef struct {
    uint16_t boot_id;           /**< drawn at random at every boot */
    uint32_t rate_millihz;      /**< samples per second and lead, in mHz; 1 to M2JL_MAX_RATE_MILLIHZ */
    uint32_t gain_nv_per_count; /**< nV per count, at the electrode; not 0 */
    uint16_t supply_mv;         /**< supply or battery in mV; 0 if not measured */
    uint8_t adc_bits;
    uint8_t bytes_per_sample; /**< 2 or 3 */
    uint8_t leads;            /**< 1 to 16 */
    m2jl_bytes_t lead_names[M2JL_MAX_LEADS]; /**< UTF-8, not empty, at most 32 bytes are sent, which differ */
    m2jl_bytes_t device_id;                  /**< UTF-8, at most 32 bytes are sent */
    m2jl_bytes_t firmware;                   /**< UTF-8, at most 32 bytes are sent */
} m2jl_info_t;

/** A few milliseconds of every lead. The frame's tick is the index of the first sample. */
typedef struct {
    uint16_t boot_id;
    uint16_t lead_off;  /**< bit n: the electrode of lead n had no contact at some time in this frame */
    uint16_t saturated; /**< bit n: lead n was at the limit of the converter at some time in this frame */
    uint8_t leads;
    uint8_t samples; /**< per lead, 1 to 255 */
    uint8_t bytes_per_sample;
    /** The counts as on the wire: the first sample of every lead, then the second of every lead, and so on. Its size is
     *  leads x samples x bytes_per_sample. See m2jl_pack_count() and m2jl_samples_count(). */
    const uint8_t *data;
} m2jl_samples_t;

/** Whether samples flow, why not, and what the device itself has counted since boot, modulo 2^32. */
typedef struct {
    uint16_t boot_id;
    bool streaming;
    uint8_t reason; /**< M2JL_REASON_... */
    uint32_t frames_sent;
    uint32_t samples_dropped; /**< per lead: taken, and not sent because the line was full */
    uint32_t bad_frames;      /**< received by the device and not usable */
} m2jl_status_t;

/** A line of text from the firmware. */
typedef struct {
    uint8_t level;     /**< M2JL_LEVEL_... */
    m2jl_bytes_t text; /**< UTF-8, at most 512 bytes are sent */
} m2jl_log_t;

/** A fault of the device, with a number that the firmware's own documentation explains. */
typedef struct {
    uint16_t code;
    m2jl_bytes_t text; /**< UTF-8, at most 512 bytes are sent */
} m2jl_error_t;

/** The answer to a command: its id and kind, how it went, and its argument back. */
typedef struct {
    uint16_t command_id;
    uint8_t kind;
    uint8_t result;    /**< M2JL_RESULT_... */
    m2jl_bytes_t echo; /**< at most 64 bytes */
} m2jl_ack_t;

/** An order to the device. Sending one again with the same id is safe: every command can be repeated. */
typedef struct {
    uint16_t command_id;
    uint8_t kind;          /**< M2JL_COMMAND_..., or a number only a newer peer knows */
    m2jl_bytes_t argument; /**< at most 64 bytes */
} m2jl_command_t;

/** The member that belongs to the frame's type is the valid one. */
typedef union {
    m2jl_info_t info;
    m2jl_samples_t samples;
    m2jl_status_t status;
    m2jl_log_t log;
    m2jl_error_t error;
    m2jl_ack_t ack;
    m2jl_command_t command;
} m2jl_message_t;

typedef struct {
    uint8_t type; /**< M2JL_TYPE_... */
    uint8_t minor_version;
    uint16_t sequence; /**< counts all frames of one direction, modulo 65,536 */
    /** In SAMPLES the index of the first sample, else of the next sample to be sent; 0 in frames to the device. */
    uint64_t tick;
    m2jl_message_t message;
} m2jl_frame_t;

/**
 * @brief CRC-32 of Ethernet and zlib.
 * @param crc 0, or the result for the bytes before these
 * @return the CRC; of the ASCII bytes 123456789 it is 0xCBF43926
 *
 * Compile the library with M2JL_CRC32_EXTERNAL defined to bring your own, for example on the CRC unit of the chip.
 */
uint32_t m2jl_crc32(uint32_t crc, const uint8_t *bytes, size_t length);

/** @brief What is sent of a text where `limit` bytes are possible: cut in front of a character, never inside one. */
m2jl_bytes_t m2jl_cut_text(m2jl_bytes_t text, size_t limit);

/** @brief Whether an INFO may say that; names of leads are compared as they are sent, at most 32 bytes of each. */
bool m2jl_info_allowed(const m2jl_info_t *info);

/**
 * @brief The value on the wire of one count.
 * @param out room for bytes_per_sample bytes
 * @param bytes_per_sample 2 or 3
 * @return false if the count is at or beyond the last one that fits, and was clipped: the converter is saturated
 */
bool m2jl_pack_count(uint8_t *out, int32_t count, uint8_t bytes_per_sample);

/** @brief The count of one lead and one sample of a valid SAMPLES message; times the gain of INFO it is a voltage. */
int32_t m2jl_samples_count(const m2jl_samples_t *samples, uint8_t lead, uint8_t sample);

/**
 * @name Encoders
 * @brief Make one whole frame, both delimiters included, in `out`.
 * @return the length in bytes; 0 if `capacity` is too small or the message not allowed, and then nothing may be sent
 *
 * Text over its limit is cut between characters. @{
 */
size_t m2jl_encode_info(uint8_t *out, size_t capacity, uint16_t sequence, uint64_t tick, const m2jl_info_t *info);
size_t m2jl_encode_samples(uint8_t *out, size_t capacity, uint16_t sequence, uint64_t tick,
                           const m2jl_samples_t *samples);
size_t m2jl_encode_status(uint8_t *out, size_t capacity, uint16_t sequence, uint64_t tick,
                          const m2jl_status_t *status);
size_t m2jl_encode_log(uint8_t *out, size_t capacity, uint16_t sequence, uint64_t tick, const m2jl_log_t *log);
size_t m2jl_encode_error(uint8_t *out, size_t capacity, uint16_t sequence, uint64_t tick, const m2jl_error_t *error);
size_t m2jl_encode_ack(uint8_t *out, size_t capacity, uint16_t sequence, uint64_t tick, const m2jl_ack_t *ack);
/** The tick of a frame to the device is always 0. */
size_t m2jl_encode_command(uint8_t *out, size_t capacity, uint16_t sequence, const m2jl_command_t *command);
/** @} */

/** Why a run of bytes between two delimiters was not delivered as a frame. */
enum {
    M2JL_DROP_OVERLONG = 0, /**< more bytes without a delimiter than the buffer takes or any frame has */
    M2JL_DROP_FRAMING,      /**< not COBS, or too short or too long for a packet */
    M2JL_DROP_CRC,          /**< the checksum does not fit the bytes */
    M2JL_DROP_VERSION,      /**< a sound frame of another major version */
    M2JL_DROP_UNKNOWN_TYPE, /**< a sound frame of a type this side does not take */
    M2JL_DROP_MALFORMED,    /**< the checksum fits, but the payload makes no sense: the sender has a bug */
    M2JL_DROP_REASONS       /**< how many reasons there are */
};

/** Returned by a payload decoder for a payload it understood. */
#define M2JL_ACCEPTED 0xFFU

/**
 * @brief Reads the payload of a frame whose CRC is right.
 * @return M2JL_ACCEPTED, M2JL_DROP_UNKNOWN_TYPE or M2JL_DROP_MALFORMED
 */
typedef uint8_t (*m2jl_payload_decoder_t)(uint8_t type, const uint8_t *payload, size_t length,
                                          m2jl_message_t *message);

/** @brief Takes every message. For a host. */
uint8_t m2jl_decode_any(uint8_t type, const uint8_t *payload, size_t length, m2jl_message_t *message);

/** @brief Takes COMMAND alone. For a device: the linker leaves out what reads the other messages. */
uint8_t m2jl_decode_command(uint8_t type, const uint8_t *payload, size_t length, m2jl_message_t *message);

/** Bytes in, frames out. The fields are the library's own, except that the counters may be read. */
typedef struct {
    uint8_t *packet;
    size_t capacity;
    size_t length;
    size_t run_length;
    m2jl_payload_decoder_t decode_payload;
    uint8_t code;
    uint8_t code_left;
    bool broken;
    bool overlong;
    uint32_t bytes_received;              /**< modulo 2^32, like all counters */
    uint32_t frames;                      /**< delivered */
    uint32_t dropped[M2JL_DROP_REASONS]; /**< not delivered, by reason */
} m2jl_decoder_t;

/**
 * @brief Prepare a decoder.
 * @param buffer holds one packet and must outlive the decoder
 * @param capacity in bytes: M2JL_MAX_PACKET_BYTES for every frame there can be, or less where only short ones are
 *        expected; longer ones are then dropped as overlong
 */
void m2jl_decoder_init(m2jl_decoder_t *decoder, uint8_t *buffer, size_t capacity,
                       m2jl_payload_decoder_t decode_payload);

/**
 * @brief Take one byte.
 * @return true if it completed a frame; what the frame points to is valid until the next call
 *
 * Whatever came before it, an intact frame is delivered.
 */
bool m2jl_decoder_push(m2jl_decoder_t *decoder, uint8_t byte, m2jl_frame_t *frame);

/**
 * @brief Take a block of bytes up to the end of the first frame in it.
 * @param position where to begin; moved behind the last byte taken
 * @return true for a frame, and then there may be more in the block; false once the block is used up
 *
 *     size_t position = 0U;
 *     while (m2jl_decoder_next(&decoder, block, length, &position, &frame)) { ... }
 */
bool m2jl_decoder_next(m2jl_decoder_t *decoder, const uint8_t *block, size_t length, size_t *position,
                       m2jl_frame_t *frame);

/** @brief All runs that were not delivered, for any reason. */
uint32_t m2jl_decoder_dropped(const m2jl_decoder_t *decoder);

#ifdef __cplusplus
}
#endif

#endif
