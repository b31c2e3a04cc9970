/* JSON (RFC 8259), as far as a configuration needs it: what a value is, the text of a string, the members of an object. */
#ifndef JSON_H
#define JSON_H

#include "../baton.h"

typedef enum { JSON_OTHER, JSON_STRING, JSON_OBJECT } json_kind;

typedef struct json_member json_member;

typedef struct {
    json_kind kind;
    baton_string text;    /* of a string, unescaped */
    json_member *members; /* of an object, ascending by name; of two with one name, the last */
} json_value;

struct json_member {
    baton_string name;
    json_value value;
    json_member *next;
};

/* False where it is no JSON. What it finds lives as long as other allocations do. */
bool json_read(baton_string text, json_value *value);

/* NULL where there is none. */
const json_value *json_find(const json_value *object, baton_string name);

#endif
