/* A wearable of twelve leads at 500 or 250 Hz that has a recording in place of electrodes.  Everything a real one adds
 * is its converter: it would call m2jl_device_push() from the interrupt that says "data ready". */
#include "board.h"
#include "ecg.h"
#include "m2jl_device.h"

#define BAUD 230400U
#define RX_BYTES 256U  /* powers of two */
#define TX_BYTES 4096U
#define CATCH_UP 4U /* samples a tick, at most */

static m2jl_device_t device;

static volatile uint32_t now_ms;
static uint32_t tick_ms;
static uint32_t next_us;
static uint32_t position;

static uint8_t rx[RX_BYTES];
static volatile uint32_t rx_in;
static volatile uint32_t rx_out;

static uint8_t tx[TX_BYTES];
static uint32_t tx_in;
static uint32_t tx_out;

/* There is nothing random on this board: a number that a reset leaves alone is stepped instead, so that two boots in a
 * row differ. */
__attribute__((section(".noinit"))) static uint32_t boots;

void SysTick_Handler(void);
void UART0_RX_Handler(void);

static void take_sample(void) {
    int32_t counts[ECG_LEADS];
    for (uint32_t lead = 0U; lead < (uint32_t)ECG_LEADS; lead++) {
        counts[lead] = ecg_uv[position][lead];
    }
    if (m2jl_device_push(&device, counts, 0U, 0U)) {
        position += tick_ms / 2U; /* the recording has a sample every 2 ms */
        if (position >= ecg_samples) {
            position -= ecg_samples;
        }
    }
}

/* An emulator on a busy host loses ticks, so the free-running counter says how many samples are due.  They are made up
 * a few a tick: all at once would fill the frames that wait before the main loop could send one. */
void SysTick_Handler(void) {
    for (uint32_t n = 0U; (n < CATCH_UP) && ((int32_t)(FPGA_IO->counter - next_us) >= 0); n++) {
        take_sample();
        next_us += tick_ms * 1000U;
        now_ms += tick_ms;
    }
}

void UART0_RX_Handler(void) {
    UART0->interrupt = 2U;
    while ((UART0->state & UART_RECEIVED) != 0U) {
        const uint8_t byte = (uint8_t)UART0->data;
        if ((rx_in - rx_out) < RX_BYTES) {
            rx[rx_in % RX_BYTES] = byte;
            rx_in++;
        }
    }
}

static void set_tick(uint32_t rate_hz) {
    SYSTICK->ctrl = 0U;
    tick_ms = 1000U / rate_hz;
    SYSTICK->reload = (CORE_HZ / rate_hz) - 1U;
    SYSTICK->value = 0U;
    next_us = FPGA_IO->counter;
    SYSTICK->ctrl = 7U;
}

static bool set_rate(void *context, uint32_t rate_millihz) {
    (void)context;
    if ((rate_millihz != 500000U) && (rate_millihz != 250000U)) {
        return false;
    }
    position = 0U;
    set_tick(rate_millihz / 1000U);
    return true;
}

static bool send(void *context, const uint8_t *bytes, size_t length) {
    (void)context;
    if (length > (TX_BYTES - (tx_in - tx_out))) {
        return false;
    }
    for (size_t i = 0U; i < length; i++) {
        tx[tx_in % TX_BYTES] = bytes[i];
        tx_in++;
    }
    return true;
}

static void receive(void) {
    while (rx_out != rx_in) {
        const uint8_t byte = rx[rx_out % RX_BYTES];
        rx_out++;
        m2jl_device_feed(&device, &byte, 1U);
    }
}

static void transmit(void) {
    while ((tx_out != tx_in) && ((UART0->state & UART_FULL) == 0U)) {
        UART0->data = tx[tx_out % TX_BYTES];
        tx_out++;
    }
}

int main(void) {
    static const char *const leads[ECG_LEADS] = {"I",  "II", "III", "aVR", "aVL", "aVF",
                                                 "V1", "V2", "V3",  "V4",  "V5",  "V6"};
    static m2jl_device_config_t config;
    config.device_id = "mps2-an386";
    config.firmware = "replay 1.0";
    config.lead_names = leads;
    config.leads = ECG_LEADS;
    config.bytes_per_sample = 2U;
    config.adc_bits = 16U;
    config.frame_ms = 20U;
    config.rate_millihz = 500000U;
    config.gain_nv_per_count = 1000U;
    boots++;
    config.boot_id = (uint16_t)(boots * 25173U);
    config.send = send;
    config.set_rate = set_rate;
    if (!m2jl_device_init(&device, &config)) {
        return 1;
    }
    UART0->divider = CORE_HZ / BAUD;
    UART0->ctrl = 1U | 2U | 8U;
    NVIC_ENABLE0 = 1U;
    FPGA_IO->prescale = (CORE_HZ / 1000000U) - 1U;
    set_tick(500U);
    for (;;) {
        receive();
        m2jl_device_poll(&device, now_ms);
        transmit();
        if (tx_out == tx_in) {
            __asm__ volatile("wfi");
        }
    }
}
