/* The few registers of the board that the examples need. */
#ifndef BOARD_H
#define BOARD_H

#include <stdint.h>

#define CORE_HZ 25000000U

typedef struct {
    volatile uint32_t data;
    volatile uint32_t state; /* bit 0: nothing can be sent now, bit 1: a byte was received */
    volatile uint32_t ctrl;  /* bits 0 and 1: send and receive, bit 3: interrupt on reception */
    volatile uint32_t interrupt;
    volatile uint32_t divider;
} uart_t;

typedef struct {
    volatile uint32_t ctrl; /* bits 0 to 2: on, interrupt, core clock */
    volatile uint32_t reload;
    volatile uint32_t value;
} systick_t;

typedef struct {
    volatile uint32_t leds, reserved, buttons, reserved2;
    volatile uint32_t clock_1_hz;
    volatile uint32_t clock_100_hz;
    volatile uint32_t counter;
    volatile uint32_t prescale; /* the counter runs at the core's clock / (prescale + 1) */
} fpga_io_t;

#define UART0 ((uart_t *)0x40004000U)
#define SYSTICK ((systick_t *)0xE000E010U)
#define FPGA_IO ((fpga_io_t *)0x40028000U)
#define NVIC_ENABLE0 (*(volatile uint32_t *)0xE000E100U)

#define UART_FULL 1U
#define UART_RECEIVED 2U

#endif
