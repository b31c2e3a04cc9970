#include "json.h"

/* Nesting is recursion, and recursion is stack. */
#define DEPTH_MAX 127

typedef struct {
    const char *at, *end;
    int depth;
} reader;

static bool read_value(reader *in, json_value *value);

static void skip_space(reader *in)
{
    while (in->at < in->end && (*in->at == ' ' || *in->at == '\t' || *in->at == '\n' || *in->at == '\r')) in->at++;
}

static bool take(reader *in, char c)
{
    if (in->at == in->end || *in->at != c) return false;
    in->at++;
    return true;
}

static bool take_word(reader *in, baton_string word)
{
    if (!baton_starts_with((baton_string){in->at, (uint32_t)(in->end - in->at)}, word)) return false;
    in->at += word.len;
    return true;
}

static bool take_digits(reader *in)
{
    const char *start = in->at;
    while (in->at < in->end && *in->at >= '0' && *in->at <= '9') in->at++;
    return in->at > start;
}

static bool read_number(reader *in)
{
    take(in, '-');
    /* A zero in front stands alone. */
    if (!take(in, '0') && !take_digits(in)) return false;
    if (take(in, '.') && !take_digits(in)) return false;
    if (take(in, 'e') || take(in, 'E')) {
        if (!take(in, '+')) take(in, '-');
        return take_digits(in);
    }
    return true;
}

static bool read_hex4(reader *in, uint32_t *unit)
{
    *unit = 0;
    for (int i = 0; i < 4; i++, in->at++) {
        if (in->at == in->end) return false;
        char c = *in->at, lower = (char)(c | 0x20);
        if (c >= '0' && c <= '9') *unit = *unit << 4 | (uint32_t)(c - '0');
        else if (lower >= 'a' && lower <= 'f') *unit = *unit << 4 | (uint32_t)(lower - 'a' + 10);
        else return false;
    }
    return true;
}

static void add_utf8(baton_text *text, uint32_t c)
{
    if (c < 0x80) {
        baton_add_char(text, (char)c);
        return;
    }
    int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    static const uint8_t first[] = {0, 0xc0, 0xe0, 0xf0};
    baton_add_char(text, (char)(first[more] | c >> 6 * more));
    while (more--) baton_add_char(text, (char)(0x80 | (c >> 6 * more & 0x3f)));
}

static bool read_escaped(reader *in, baton_text *text)
{
    if (in->at == in->end) return false;
    char c = *in->at++;
    switch (c) {
    case '"': case '\\': case '/': baton_add_char(text, c); return true;
    case 'b': baton_add_char(text, '\b'); return true;
    case 'f': baton_add_char(text, '\f'); return true;
    case 'n': baton_add_char(text, '\n'); return true;
    case 'r': baton_add_char(text, '\r'); return true;
    case 't': baton_add_char(text, '\t'); return true;
    case 'u': break;
    default: return false;
    }
    uint32_t first, second;
    if (!read_hex4(in, &first)) return false;
    if (first < 0xd800 || first > 0xdfff) {
        add_utf8(text, first);
        return true;
    }
    /* Above the first plane a character is written as two halves; one alone is no text. */
    if (first > 0xdbff || !take(in, '\\') || !take(in, 'u') || !read_hex4(in, &second)) return false;
    if (second < 0xdc00 || second > 0xdfff) return false;
    add_utf8(text, 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00));
    return true;
}

static bool read_string(reader *in, baton_string *string)
{
    baton_text text = {0};
    if (!take(in, '"')) return false;
    while (in->at < in->end) {
        char c = *in->at++;
        if (c == '"') {
            *string = baton_text_string(&text);
            return true;
        }
        if ((unsigned char)c < 0x20) return false;
        if (c != '\\') baton_add_char(&text, c);
        else if (!read_escaped(in, &text)) return false;
    }
    return false;
}

/* By bytes, as memcmp and then the length. */
static int compare(baton_string a, baton_string b)
{
    for (uint32_t i = 0; i < a.len && i < b.len; i++)
        if (a.ptr[i] != b.ptr[i]) return (uint8_t)a.ptr[i] - (uint8_t)b.ptr[i];
    return a.len < b.len ? -1 : a.len > b.len;
}

static void put(json_member **members, json_member member)
{
    int order = 1;
    while (*members && (order = compare((*members)->name, member.name)) < 0) members = &(*members)->next;
    if (*members && order == 0) {
        (*members)->value = member.value;
        return;
    }
    json_member *added = baton_alloc(sizeof(json_member), _Alignof(json_member));
    member.next = *members;
    *added = member;
    *members = added;
}

static bool read_object(reader *in, json_value *value)
{
    value->kind = JSON_OBJECT;
    skip_space(in);
    if (take(in, '}')) return true;
    do {
        json_member member;
        skip_space(in);
        if (!read_string(in, &member.name)) return false;
        skip_space(in);
        if (!take(in, ':') || !read_value(in, &member.value)) return false;
        put(&value->members, member);
        skip_space(in);
    } while (take(in, ','));
    return take(in, '}');
}

static bool read_array(reader *in)
{
    skip_space(in);
    if (take(in, ']')) return true;
    do {
        json_value item;
        if (!read_value(in, &item)) return false;
        skip_space(in);
    } while (take(in, ','));
    return take(in, ']');
}

static bool read_value(reader *in, json_value *value)
{
    *value = (json_value){.kind = JSON_OTHER};
    skip_space(in);
    if (in->at == in->end || in->depth == DEPTH_MAX) return false;
    in->depth++;
    bool good;
    switch (*in->at) {
    case '{': in->at++; good = read_object(in, value); break;
    case '[': in->at++; good = read_array(in); break;
    case '"': value->kind = JSON_STRING; good = read_string(in, &value->text); break;
    case 't': good = take_word(in, BATON_STR("true")); break;
    case 'f': good = take_word(in, BATON_STR("false")); break;
    case 'n': good = take_word(in, BATON_STR("null")); break;
    default: good = read_number(in);
    }
    in->depth--;
    return good;
}

bool json_read(baton_string text, json_value *value)
{
    reader in = {text.ptr, text.ptr + text.len, 0};
    if (!read_value(&in, value)) return false;
    skip_space(&in);
    return in.at == in.end;
}

const json_value *json_find(const json_value *object, baton_string name)
{
    for (const json_member *member = object->members; member; member = member->next)
        if (baton_equal(member->name, name)) return &member->value;
    return NULL;
}
