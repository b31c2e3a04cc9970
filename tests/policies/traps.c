/* Gives up, two calls deep. */
#define BATON_IMPLEMENTATION
#include "../../policies/c/baton.h"

__attribute__((noinline)) static uint32_t give_up(uint32_t length)
{
    if (length > 0) __builtin_trap(); /* line 7 */
    return length;
}

static baton_decision decide(void)
{
    return baton_decide_respond((uint16_t)(200 + give_up(baton_request_path().len)), BATON_BYTES(""));
}

BATON_ON_REQUEST(decide)
