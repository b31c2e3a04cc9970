/*
 * What every daemon answers: a small text. With `Connection: close`, or with a
 * length alone, where the connection goes on.
 */
#define BODY "Hello, world\n"
#define HEAD(type) "HTTP/1.1 200 OK\r\nContent-Type: " type "\r\n"
#define KEPT "Content-Length: 13\r\n"
#define CLOSED "Connection: close\r\n"

static const char answer_closed[] = HEAD("text/plain") KEPT CLOSED "\r\n" BODY;
