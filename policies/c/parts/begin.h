/* Baton's contract with policies, for C.
 *
 * Written by policies/c/generate from wit/policy.wit; parts/begin.h and parts/end.h are what stands around it. Plain C11,
 * no libc. Every type of the contract is the struct that lies in memory, every import a function, every hook a macro:
 *
 *     #define BATON_IMPLEMENTATION        // in one file of the policy
 *     #include "baton.h"
 *
 *     static baton_decision decide(void)
 *     {
 *         if (!baton_request_header(BATON_STR("x-deny")).is_some)
 *             return baton_decide_handoff(BATON_STR("chat"), BATON_BYTES("hello"));
 *         baton_decision decision = baton_decide_respond(403, BATON_BYTES("no\n"));
 *         baton_add_header(&decision, BATON_STR("x-why"), BATON_BYTES("asked to"));
 *         return decision;
 *     }
 *
 *     BATON_ON_REQUEST(decide)
 *
 * Strings are pointer and length, and nothing stands behind the last byte. What imports return, and what baton_alloc gives,
 * lives until the hook's answer has been read; then all of it is gone at once. Nothing is ever freed by hand.
 */
#ifndef BATON_H
#define BATON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef __wasm32__
#error "a policy is built for wasm32: zig cc --target=wasm32-freestanding, or clang --target=wasm32"
#endif

/* UTF-8. */
typedef struct {
    const char *ptr;
    uint32_t len;
} baton_string;

typedef struct {
    const uint8_t *ptr;
    uint32_t len;
} baton_bytes;

/* Of a string literal. */
#define BATON_STR(literal) ((baton_string){(literal), sizeof(literal) - 1})
#define BATON_BYTES(literal) ((baton_bytes){(const uint8_t *)(literal), sizeof(literal) - 1})

/* Room that lives until the hook's answer has been read. Never NULL: where the policy's memory_max is reached, it traps,
 * and the gateway names the limit. */
void *baton_alloc(uint32_t size, uint32_t align);

/* Everything that lives now lives for ever: what configure has read. */
void baton_keep(void);

/* What the hooks' macros do when an answer has been read. */
void baton_reset(void);
