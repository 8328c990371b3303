/**
 * @file m2jl_device.h
 * @brief The device's side of the conversation, so that a firmware has four things to do.
 *
 *     m2jl_device_init(&device, &config);
 *     m2jl_device_push(&device, counts, 0U, 0U);          // in the converter's interrupt, for every sample
 *     m2jl_device_feed(&device, received, length);        // in the main loop, what came from the host
 *     m2jl_device_poll(&device, now_ms);                  // in the main loop, as often as possible
 *
 * The library packs samples into frames, answers HELLO, START, STOP, PING, SET_RATE and SET_LEADS, sends INFO and
 * STATUS at boot and every second, and counts what the line could not take.
 *
 * m2jl_device_push() may be called from one interrupt, also while any other function runs, once m2jl_device_init() has
 * returned. All the others must be called from one place, such as the main loop. On a processor with several cores, or
 * with threads, the caller locks.
 */
#ifndef M2JL_DEVICE_H
#define M2JL_DEVICE_H

#include "m2jl_wire.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Bytes of counts that one frame can hold: by default 10 samples of 12 leads of 24 bits. At most 1014. */
#ifndef M2JL_DEVICE_DATA_BYTES
#define M2JL_DEVICE_DATA_BYTES 360U
#endif

/** Frames that wait while the line is busy; what comes when all are full is dropped and counted. 2 to 255. */
#ifndef M2JL_DEVICE_SLOTS
#define M2JL_DEVICE_SLOTS 4U
#endif

/** The largest packet taken from the host. A COMMAND of version 1.1 has at most 84 bytes, so no less is possible; a
 *  later one may have more. */
#ifndef M2JL_DEVICE_RX_BYTES
#define M2JL_DEVICE_RX_BYTES 128U
#endif

#if M2JL_DEVICE_DATA_BYTES > (M2JL_MAX_PAYLOAD_BYTES - M2JL_SAMPLES_FIXED_BYTES)
#error "M2JL_DEVICE_DATA_BYTES: a frame holds 1014 bytes of counts at most"
#endif
#if (M2JL_DEVICE_SLOTS < 2U) || (M2JL_DEVICE_SLOTS > 255U)
#error "M2JL_DEVICE_SLOTS: 2 to 255 are possible"
#endif
#if M2JL_DEVICE_RX_BYTES < (M2JL_MIN_PACKET_BYTES + M2JL_MAX_COMMAND_PAYLOAD_BYTES)
#error "M2JL_DEVICE_RX_BYTES: a command has up to 84 bytes"
#endif

/** What the application is and can. Must outlive the device; texts are UTF-8 and end with a zero. */
typedef struct {
    const char *device_id;          /**< at most 32 bytes are sent */
    const char *firmware;           /**< at most 32 bytes are sent */
    const char *const *lead_names;  /**< one per physical lead, not empty; at most 32 bytes are sent, which differ */
    uint8_t leads;                  /**< physical leads, 1 to 16 */
    uint8_t bytes_per_sample;       /**< on the wire: 2 or 3 */
    uint8_t adc_bits;               /**< resolution of the converter */
    uint8_t frame_ms;               /**< how much time a frame holds, as far as it fits; 20 is usual */
    uint32_t rate_millihz;          /**< samples per second and lead at boot, in mHz; 1 to M2JL_MAX_RATE_MILLIHZ */
    uint32_t gain_nv_per_count;     /**< nV per count, at the electrode */
    uint16_t boot_id;               /**< as random as the board can make it: two boots in a row must differ */
    void *context;                  /**< handed to the functions below */

    /** Takes a whole frame for sending, or nothing: false if there is no room now. It is offered again at the next
     *  poll. Once what it took before is gone there must be room for any frame: an answer that waits holds up the
     *  samples behind it. */
    bool (*send)(void *context, const uint8_t *bytes, size_t length);

    /** Starts or stops the converter; false if that cannot be done now. NULL if it always runs: what is pushed while
     *  the device is stopped is ignored. */
    bool (*set_streaming)(void *context, bool on);

    /** Changes the rate, in mHz; false if the board does not have exactly that one. NULL if it has but one. */
    bool (*set_rate)(void *context, uint32_t rate_millihz);

    /** Is told which physical leads will be sent, bit 0 for the first, and may refuse with false. NULL if there is
     *  nothing to do for it: all leads are pushed all the same, and the library picks. */
    bool (*set_leads)(void *context, uint16_t mask);
} m2jl_device_config_t;

/** A frame's worth of samples between the interrupt that takes them and the main loop that sends them. */
typedef struct {
    uint64_t tick;
    uint16_t used;
    uint16_t lead_off;
    uint16_t saturated;
    uint8_t samples;
    volatile uint8_t state;
    uint8_t data[M2JL_DEVICE_DATA_BYTES];
} m2jl_device_slot_t;

/** What a frame of this device holds: its SAMPLES, and in any case the answer to the longest command. */
#define M2JL_DEVICE_PAYLOAD_BYTES                                                       \
    (((M2JL_SAMPLES_FIXED_BYTES + M2JL_DEVICE_DATA_BYTES) > M2JL_MAX_ACK_PAYLOAD_BYTES) \
         ? (M2JL_SAMPLES_FIXED_BYTES + M2JL_DEVICE_DATA_BYTES)                          \
         : M2JL_MAX_ACK_PAYLOAD_BYTES)

/** The fields are the library's own. */
typedef struct {
    const m2jl_device_config_t *config;
    m2jl_decoder_t decoder;
    volatile uint64_t tick;
    volatile uint32_t samples_dropped;
    volatile bool streaming;
    uint32_t rate_millihz;
    uint32_t frames_sent;
    uint32_t bad_frames_before;
    uint32_t announced_ms;
    uint16_t boot_id;
    uint16_t sequence;
    uint16_t lead_mask;
    uint16_t supply_mv;
    uint8_t leads;
    uint8_t samples_per_frame;
    uint8_t reason;
    uint8_t head; /* the slot being filled */
    uint8_t tail; /* the oldest slot that is not sent */
    bool announced;
    bool ack_pending;
    bool info_pending;
    bool status_pending;
    bool begin_anew;
    uint16_t new_lead_mask;
    uint32_t new_rate_millihz;
    m2jl_ack_t ack;
    uint8_t echo[M2JL_MAX_ARGUMENT_BYTES];
    uint8_t rx[M2JL_DEVICE_RX_BYTES];
    uint8_t tx[M2JL_FRAME_BYTES(M2JL_DEVICE_PAYLOAD_BYTES)];
    m2jl_device_slot_t slots[M2JL_DEVICE_SLOTS];
} m2jl_device_t;

/**
 * @brief Prepare a device as after a boot: stopped, tick 0. INFO and STATUS go out with the first poll.
 * @return false if the configuration is not allowed, or its leads or its INFO do not fit the buffers
 */
bool m2jl_device_init(m2jl_device_t *device, const m2jl_device_config_t *config);

/**
 * @brief Take one sample of every physical lead. May be called from an interrupt.
 * @param counts one per physical lead; clipped to bytes_per_sample
 * @param lead_off bit n: the electrode of physical lead n has no contact
 * @param saturated bit n: physical lead n is at the limit of the converter; set by the library too, for what it clips
 * @return false if the sample was not kept: the device is stopped, or all slots are full and the sample is counted as
 *         dropped
 */
bool m2jl_device_push(m2jl_device_t *device, const int32_t *counts, uint16_t lead_off, uint16_t saturated);

/** @brief Take bytes from the host, cut anywhere, and obey the commands in them. */
void m2jl_device_feed(m2jl_device_t *device, const uint8_t *bytes, size_t length);

/**
 * @brief Send what can be sent.
 * @param now_ms any clock that counts milliseconds modulo 2^32
 */
void m2jl_device_poll(m2jl_device_t *device, uint32_t now_ms);

/** @brief Stream without being asked; false if set_streaming refuses. */
bool m2jl_device_start(m2jl_device_t *device);

/** @brief Stop without being asked, for a reason such as M2JL_REASON_FAULT. */
void m2jl_device_stop(m2jl_device_t *device, uint8_t reason);

/** @brief Supply or battery in mV, for the next INFO; 0 if not measured. */
void m2jl_device_set_supply(m2jl_device_t *device, uint16_t supply_mv);

/** @brief Send a line of text, cut to what a frame of this device holds; false if the line is full, and it is lost. */
bool m2jl_device_log(m2jl_device_t *device, uint8_t level, const char *text);

/** @brief Report a fault, likewise. */
bool m2jl_device_error(m2jl_device_t *device, uint16_t code, const char *text);

#ifdef __cplusplus
}
#endif

#endif
