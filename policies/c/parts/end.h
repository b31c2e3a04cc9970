
/* === Strings === */

static inline baton_bytes baton_bytes_of(baton_string text)
{
    return (baton_bytes){(const uint8_t *)text.ptr, text.len};
}

static inline baton_string baton_string_of(baton_bytes bytes)
{
    return (baton_string){(const char *)bytes.ptr, bytes.len};
}

static inline bool baton_equal(baton_string a, baton_string b)
{
    if (a.len != b.len) return false;
    for (uint32_t i = 0; i < a.len; i++)
        if (a.ptr[i] != b.ptr[i]) return false;
    return true;
}

static inline bool baton_starts_with(baton_string text, baton_string start)
{
    return text.len >= start.len && baton_equal((baton_string){text.ptr, start.len}, start);
}

/* The same, where `start` is in lower case and the text's case does not matter. */
static inline bool baton_starts_with_any_case(baton_string text, baton_string start)
{
    if (text.len < start.len) return false;
    for (uint32_t i = 0; i < start.len; i++) {
        char c = text.ptr[i];
        if (c >= 'A' && c <= 'Z') c = (char)(c | 0x20);
        if (c != start.ptr[i]) return false;
    }
    return true;
}

/* From byte `start` on; `start` is at most its length. */
static inline baton_string baton_from(baton_string text, uint32_t start)
{
    return (baton_string){text.ptr + start, text.len - start};
}

/* Text under construction; begins as {0}. */
typedef struct {
    char *ptr;
    uint32_t len;
    uint32_t room;
} baton_text;

static inline void baton_add_char(baton_text *text, char c)
{
    if (text->len == text->room) {
        uint32_t room = text->room ? text->room * 2 : 128;
        char *ptr = baton_alloc(room, 1);
        if (text->len) __builtin_memcpy(ptr, text->ptr, text->len);
        text->ptr = ptr;
        text->room = room;
    }
    text->ptr[text->len++] = c;
}

static inline void baton_add(baton_text *text, baton_string more)
{
    for (uint32_t i = 0; i < more.len; i++) baton_add_char(text, more.ptr[i]);
}

static inline void baton_add_number(baton_text *text, uint64_t number)
{
    char digits[20];
    uint32_t count = 0;
    do digits[count++] = (char)('0' + number % 10);
    while (number /= 10);
    while (count) baton_add_char(text, digits[--count]);
}

/* A JSON string, its quotes included (RFC 8259 7). */
static inline void baton_add_json(baton_text *text, baton_string value)
{
    baton_add_char(text, '"');
    for (uint32_t i = 0; i < value.len; i++) {
        unsigned char c = (unsigned char)value.ptr[i];
        /* What has a letter of its own, by its number; 0 for the others. */
        char letter = "\0\0\0\0\0\0\0\0btn\0fr"[c < 14 ? c : 0];
        if (c == '"' || c == '\\') letter = (char)c;
        if (letter) {
            baton_add_char(text, '\\');
            baton_add_char(text, letter);
        } else if (c < 0x20) {
            baton_add(text, BATON_STR("\\u00"));
            baton_add_char(text, (char)('0' + (c >> 4)));
            baton_add_char(text, "0123456789abcdef"[c & 15]);
        } else {
            baton_add_char(text, (char)c);
        }
    }
    baton_add_char(text, '"');
}

static inline baton_string baton_text_string(const baton_text *text)
{
    return (baton_string){text->ptr, text->len};
}

static inline baton_bytes baton_text_bytes(const baton_text *text)
{
    return (baton_bytes){(const uint8_t *)text->ptr, text->len};
}

/* === Lists === */

/* Room for one more behind the items that are there, which may be constant: they are copied. */
#define BATON_GROWN(list, type) ((type *)baton_grown((list).ptr, (list).len++, sizeof(type), _Alignof(type)))

static inline void *baton_grown(const void *items, uint32_t count, uint32_t size, uint32_t align)
{
    char *grown = baton_alloc((count + 1) * size, align);
    if (count) __builtin_memcpy(grown, items, count * size);
    return grown;
}

/* === Decisions === */

/* No opinion: the next policy decides, then the route's default. */
static inline baton_decision baton_decide_pass(void)
{
    return (baton_decision){.action = {.tag = BATON_ACTION_PASS}};
}

/* The client goes to a target; the data arrives with its socket. */
static inline baton_decision baton_decide_handoff(baton_string target, baton_bytes data)
{
    baton_handoff handoff = {.target = target, .data = data, .relay = BATON_RELAY_MODE_IF_NEEDED};
    return (baton_decision){.action = {.tag = BATON_ACTION_HANDOFF, .of.handoff = handoff}};
}

/* The client is answered here. */
static inline baton_decision baton_decide_respond(uint16_t status, baton_bytes body)
{
    return (baton_decision){.action = {.tag = BATON_ACTION_RESPOND, .of.respond = {.status = status, .body = body}}};
}

/* The connection is closed without an answer. */
static inline baton_decision baton_decide_abort(void)
{
    return (baton_decision){.action = {.tag = BATON_ACTION_ABORT}};
}

/* Adds a field to an answer; its name is in lower case. */
static inline void baton_add_header(baton_decision *decision, baton_string name, baton_bytes value)
{
    baton_list_field *headers = &decision->action.of.respond.headers;
    uint32_t at = headers->len;
    baton_field *fields = BATON_GROWN(*headers, baton_field);
    fields[at] = (baton_field){name, value};
    headers->ptr = fields;
}

/* Adds to the access log; the last value of a key wins. */
static inline void baton_annotate(baton_decision *decision, baton_string key, baton_string value)
{
    baton_list_tuple_string_string *annotations = &decision->annotations;
    uint32_t at = annotations->len;
    baton_tuple_string_string *pairs = BATON_GROWN(*annotations, baton_tuple_string_string);
    pairs[at] = (baton_tuple_string_string){key, value};
    annotations->ptr = pairs;
}

/* === Memory === */

#ifdef BATON_IMPLEMENTATION

/* Never called: `baton policy inspect` reads the name, which is there in a stripped module too. */
__attribute__((export_name("baton_language_C"))) void baton_language_c(void) {}

/* The linker's: where data and stack end. */
extern unsigned char __heap_base;

static uintptr_t baton_kept, baton_used;

void *baton_alloc(uint32_t size, uint32_t align)
{
    if (!baton_kept) baton_kept = baton_used = (uintptr_t)&__heap_base;
    uintptr_t at = (baton_used + align - 1) & ~(uintptr_t)(align - 1);
    uintptr_t room = __builtin_wasm_memory_size(0) * 65536;
    if (size > UINT32_MAX - 65535 - at) __builtin_trap();
    if (at + size > room) {
        /* Half as much again, so that a slow growth is few requests. */
        uintptr_t wanted = (at + size - room + 65535) / 65536, ample = wanted + room / 65536 / 2;
        if (__builtin_wasm_memory_grow(0, ample) == SIZE_MAX && __builtin_wasm_memory_grow(0, wanted) == SIZE_MAX)
            __builtin_trap();
    }
    baton_used = at + size;
    return (void *)at;
}

void baton_keep(void)
{
    baton_kept = baton_used;
}

void baton_reset(void)
{
    baton_used = baton_kept;
}

/* Where the gateway puts what it gives. */
__attribute__((export_name("cabi_realloc")))
void *baton_realloc(void *old, uint32_t old_size, uint32_t align, uint32_t size)
{
    void *at = baton_alloc(size, align);
    if (old_size) __builtin_memcpy(at, old, old_size < size ? old_size : size);
    return at;
}

#endif /* BATON_IMPLEMENTATION */

#endif /* BATON_H */
