/* The least that a test needs: a check that says where it failed, and a count for the end. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>

static int checks_failed;

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            (void)fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition); \
            checks_failed++;                                                              \
        }                                                                                 \
    } while (0)

#define RUN(test)                       \
    do {                                \
        const int before = checks_failed; \
        test();                         \
        (void)printf("%s %s\n", (checks_failed == before) ? "ok    " : "FAILED", #test); \
    } while (0)

#endif
