/* CRC-32 by nibbles: a table of 64 bytes and 11 instructions a byte on a Cortex-M4.  The usual table of 1 KiB saves
 * five of them and would add a quarter to this library; without a table it is about 40.  Twelve leads of 24 bits at
 * 500 Hz are 20,000 bytes a second, so the nibbles cost 0.2 million instructions a second.  Who wants none has a CRC
 * unit. */
#include "m2jl_wire.h"

#ifndef M2JL_CRC32_EXTERNAL

static const uint32_t crc_of_nibble[16] = {
    0x00000000U, 0x1DB71064U, 0x3B6E20C8U, 0x26D930ACU, 0x76DC4190U, 0x6B6B51F4U, 0x4DB26158U, 0x5005713CU,
    0xEDB88320U, 0xF00F9344U, 0xD6D6A3E8U, 0xCB61B38CU, 0x9B64C2B0U, 0x86D3D2D4U, 0xA00AE278U, 0xBDBDF21CU,
};

uint32_t m2jl_crc32(uint32_t crc, const uint8_t *bytes, size_t length) {
    uint32_t state = ~crc;
    for (size_t i = 0U; i < length; i++) {
        state ^= bytes[i];
        state = (state >> 4U) ^ crc_of_nibble[state & 0x0FU];
        state = (state >> 4U) ^ crc_of_nibble[state & 0x0FU];
    }
    return ~state;
}

#else
typedef int m2jl_crc_is_external; /* C99 wants something in every file */
#endif
