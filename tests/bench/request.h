/*
 * The request of every client that measures: what a script in a browser sends
 * for an event stream, 13 fields. The first %s is the bearer token, the second
 * what becomes of the connection: close or keep-alive.
 */
static const char request_format[] =
	"GET /v1/chat?conversation=42&model=large HTTP/1.1\r\n"
	"Host: bench.example\r\n"
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
	"Accept: text/event-stream\r\n"
	"Accept-Language: en-GB,en;q=0.7,de;q=0.3\r\n"
	"Accept-Encoding: gzip, deflate, br, zstd\r\n"
	"Referer: https://bench.example/conversations/42\r\n"
	"Authorization: Bearer %s\r\n"
	"Cookie: session=8f14e45fceea167a5a36dedd4bea2543; theme=dark; consent=1.1700000000\r\n"
	"Connection: %s\r\n"
	"Sec-Fetch-Dest: empty\r\n"
	"Sec-Fetch-Mode: cors\r\n"
	"Sec-Fetch-Site: same-origin\r\n"
	"Cache-Control: no-cache\r\n"
	"\r\n";
