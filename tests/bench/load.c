/*
 * The load: a closed loop of clients, each with one request at a time and a
 * new TCP connection for every request, read to its end.
 *
 * usage: load -p PORT -b TOKEN [-c CLIENTS] [-n REQUESTS] [-w WARMUP] [-t SECONDS_MAX]
 *
 * Runs the warm-up to its end, says `warm` on standard output and waits for a
 * line on standard input: whoever measures reads the gateway's counters there,
 * while nothing is in flight. Then it runs the timed part and prints one line
 * of JSON. Latencies are microseconds from connect() to the first byte.
 *
 * An error is a connection refused, reset, ended without an answer, cut before
 * the length that the answer announced, or not finished in time.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* What a script in a browser sends for an event stream: 13 fields. */
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
	"Connection: close\r\n"
	"Sec-Fetch-Dest: empty\r\n"
	"Sec-Fetch-Mode: cors\r\n"
	"Sec-Fetch-Site: same-origin\r\n"
	"Cache-Control: no-cache\r\n"
	"\r\n";

enum end { GOOD, ERROR, NOT_200 };

struct client {
	int socket;
	enum { CONNECTING, WAITING, READING } state;
	uint64_t began_ns, first_byte_ns;
	size_t got, expected; /* expected 0: the answer has not said */
};

static struct sockaddr_in gateway = { .sin_family = AF_INET };
static struct client *clients;
static char request[2048];
static size_t request_len;
static uint32_t *latencies_ns; /* of good answers in the present part; 4.29 s is the most */
static long count, errors, not_200;
static long begun, ended;
static int epoll;

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void end(struct client *c, enum end how)
{
	uint64_t ns = c->first_byte_ns - c->began_ns;

	close(c->socket);
	c->socket = -1;
	ended++;
	if (how == GOOD)
		latencies_ns[count++] = ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
	else if (how == ERROR)
		errors++;
	else
		not_200++;
}

static void send_request(struct client *c)
{
	struct epoll_event e = { .events = EPOLLIN, .data.ptr = c };

	c->state = WAITING;
	if (send(c->socket, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len)
		end(c, ERROR);
	else
		epoll_ctl(epoll, EPOLL_CTL_MOD, c->socket, &e);
}

static void begin(struct client *c)
{
	struct epoll_event e = { .events = EPOLLOUT, .data.ptr = c };

	begun++;
	*c = (struct client){ .state = CONNECTING };
	c->socket = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	c->began_ns = now_ns();
	if (connect(c->socket, (struct sockaddr *)&gateway, sizeof gateway) < 0 && errno != EINPROGRESS)
		end(c, ERROR);
	else if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->socket, &e) < 0)
		end(c, ERROR);
}

/* Reads what there is; the answer's head is expected in its first piece. */
static void read_answer(struct client *c)
{
	static char bytes[65536];
	ssize_t n;

	while ((n = recv(c->socket, bytes, sizeof bytes - 1, 0)) > 0) {
		if (c->state == WAITING) {
			const char *length, *body;

			c->state = READING;
			c->first_byte_ns = now_ns();
			bytes[n] = '\0';
			if (strncmp(bytes, "HTTP/1.1 200 ", 13) != 0) {
				end(c, NOT_200);
				return;
			}
			length = strcasestr(bytes, "\r\nContent-Length: ");
			body = strstr(bytes, "\r\n\r\n");
			if (length && body)
				c->expected = (size_t)(body + 4 - bytes) + strtoul(length + 18, NULL, 10);
		}
		c->got += (size_t)n;
	}
	if (n == 0)
		end(c, c->expected && c->got == c->expected ? GOOD : ERROR);
	else if (errno != EAGAIN)
		end(c, ERROR);
}

/* One part of the run; what is unfinished at `due_ns` is an error. */
static void run(long requests, int clients_count, uint64_t due_ns)
{
	struct epoll_event events[512];

	count = errors = not_200 = begun = ended = 0;
	for (int i = 0; i < clients_count && begun < requests; i++)
		begin(&clients[i]);
	while (ended < requests) {
		int n = epoll_wait(epoll, events, 512, 100);

		for (int i = 0; i < n; i++) {
			struct client *c = events[i].data.ptr;

			if (c->state == CONNECTING)
				send_request(c);
			else
				read_answer(c);
			if (c->socket < 0 && begun < requests)
				begin(c);
		}
		if (now_ns() > due_ns || (n == 0 && begun == ended))
			break; /* out of time, or nobody could even connect */
	}
	errors += requests - ended;
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static double percentile_us(double part)
{
	return count ? latencies_ns[(long)((double)(count - 1) * part)] / 1000.0 : 0;
}

int main(int argc, char **argv)
{
	long requests = 20000, warmup = 2000;
	int clients_count = 64, seconds_max = 60;
	uint64_t began_ns, due_ns;
	double seconds;

	for (int o; (o = getopt(argc, argv, "p:b:c:n:w:t:")) != -1;) {
		switch (o) {
		case 'p': gateway.sin_port = htons((in_port_t)atoi(optarg)); break;
		case 'b': request_len = (size_t)snprintf(request, sizeof request, request_format, optarg); break;
		case 'c': clients_count = atoi(optarg); break;
		case 'n': requests = atol(optarg); break;
		case 'w': warmup = atol(optarg); break;
		case 't': seconds_max = atoi(optarg); break;
		default: return 2;
		}
	}
	if (gateway.sin_port == 0 || request_len == 0 || request_len >= sizeof request ||
	    clients_count < 1 || requests < 1 || warmup < 0)
		return 2;
	gateway.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	clients = calloc((size_t)clients_count, sizeof *clients);
	latencies_ns = calloc((size_t)(requests > warmup ? requests : warmup), sizeof *latencies_ns);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	due_ns = now_ns() + (uint64_t)seconds_max * 1000000000;

	run(warmup, clients_count, due_ns);
	puts("warm");
	fflush(stdout);
	if (getchar() == EOF)
		return 1;
	began_ns = now_ns();
	run(requests, clients_count, due_ns);
	seconds = (double)(now_ns() - began_ns) / 1e9;
	qsort(latencies_ns, (size_t)count, sizeof *latencies_ns, by_value);
	printf("{\"count\": %ld, \"seconds\": %.6f, \"requests_per_s\": %.1f, "
	    "\"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, "
	    "\"errors\": %ld, \"not_200\": %ld}\n",
	    count, seconds, (double)count / seconds, percentile_us(0.5), percentile_us(0.9),
	    percentile_us(0.99), percentile_us(0.999), errors, not_200);
	return 0;
}
