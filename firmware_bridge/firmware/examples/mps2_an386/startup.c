/* From reset to main, and the vectors that this board uses. */
#include <stdint.h>

extern uint32_t data_source[], data_begin[], data_end[], bss_begin[], bss_end[], stack_top[];

int main(void);
void Reset_Handler(void);
void SysTick_Handler(void);
void UART0_RX_Handler(void);

static void hang(void) {
    for (;;) {
    }
}

void Reset_Handler(void) {
    const uint32_t *from = data_source;
    for (uint32_t *to = data_begin; to < data_end; to++) {
        *to = *from;
        from++;
    }
    for (uint32_t *to = bss_begin; to < bss_end; to++) {
        *to = 0U;
    }
    (void)main();
    hang();
}

typedef union {
    void (*handler)(void);
    uint32_t *stack;
} vector_t;

__attribute__((section(".vectors"), used)) static const vector_t vectors[17] = {
    {.stack = stack_top},
    {.handler = Reset_Handler},
    {.handler = hang}, /* NMI */
    {.handler = hang}, /* hard fault */
    {.handler = hang}, /* memory management */
    {.handler = hang}, /* bus fault */
    {.handler = hang}, /* usage fault */
    {.handler = hang},
    {.handler = hang},
    {.handler = hang},
    {.handler = hang},
    {.handler = hang}, /* SVCall */
    {.handler = hang}, /* debug monitor */
    {.handler = hang},
    {.handler = hang}, /* PendSV */
    {.handler = SysTick_Handler},
    {.handler = UART0_RX_Handler},
};
