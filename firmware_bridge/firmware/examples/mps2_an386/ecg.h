/* What the board replays in place of electrodes. */
#ifndef ECG_H
#define ECG_H

#include <stdint.h>

#define ECG_LEADS 12

extern const uint32_t ecg_samples;
extern const int16_t ecg_uv[][ECG_LEADS];

#endif
