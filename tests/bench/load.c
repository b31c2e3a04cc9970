/*
 * The load: a closed loop of clients, each with one request at a time and a
 * new TCP connection for every request, read to its end.
 *
 * usage: load -p PORT -b TOKEN [-c CLIENTS] [-n REQUESTS] [-w WARMUP] [-t SECONDS_MAX] [-k BYTES]
 *
 * -k keeps the connections, from the warm-up on, and expects bodies of so many
 * bytes, with a Content-Length. One that an answer says is closed is made anew.
 *
 * Runs the warm-up to its end, says `warm` on standard output and waits for a
 * line on standard input: whoever measures reads the gateway's counters there,
 * while nothing is in flight. Then it runs the timed part and prints one line
 * of JSON. Latencies are microseconds from connect() to the first byte of the
 * answer's body: where the gateway writes the head itself, the head shows
 * nothing of the daemon.
 *
 * An error is a connection refused, reset, ended without an answer, an answer
 * with another body than the daemon's or cut before it, or not finished in time.
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

#include "request.h"

static const char body[] = "Hello, world\n"; /* of every answer */

enum { ANSWER_BYTES_MAX = 1024 };

enum end { GOOD, ERROR, NOT_200 };

struct client {
	int socket; /* -1: none; one that is kept stays */
	enum { IDLE, CONNECTING, READING } state;
	uint64_t began_ns, body_ns;
	size_t got;      /* of the answer; of one that is kept: of its head */
	size_t body_got; /* of one that is kept, whose head is whole when body_ns is set */
	char answer[ANSWER_BYTES_MAX + 1];
};

static struct sockaddr_in gateway = { .sin_family = AF_INET };
static struct client *clients;
static char request[2048];
static size_t request_len;
static uint32_t *latencies_ns; /* of good answers in the present part; 4.29 s is the most */
static long count, errors, not_200;
static long begun, ended;
static int epoll;
static size_t kept_body_len; /* 0: connections are not kept */

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void end(struct client *c, enum end how)
{
	uint64_t ns = c->body_ns - c->began_ns;

	if (how != GOOD || !kept_body_len || strcasestr(c->answer, "\r\nConnection: close\r\n")) {
		close(c->socket);
		c->socket = -1;
	}
	c->state = IDLE;
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
	int is_new = c->state == CONNECTING;

	c->state = READING;
	if (send(c->socket, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len)
		end(c, ERROR);
	else if (is_new)
		epoll_ctl(epoll, EPOLL_CTL_MOD, c->socket, &e);
}

static void begin(struct client *c)
{
	struct epoll_event e = { .events = EPOLLOUT, .data.ptr = c };

	begun++;
	c->got = c->body_ns = c->body_got = 0;
	if (c->socket >= 0) {
		c->began_ns = now_ns();
		send_request(c);
		return;
	}
	c->state = CONNECTING;
	c->socket = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	c->began_ns = now_ns();
	if (connect(c->socket, (struct sockaddr *)&gateway, sizeof gateway) < 0 && errno != EINPROGRESS)
		end(c, ERROR);
	else if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->socket, &e) < 0)
		end(c, ERROR);
}

/* What a whole answer is; one with a length has the right one when the body is right. */
static enum end judged(const struct client *c)
{
	const char *length = strcasestr(c->answer, "\r\nContent-Length: ");
	const char *head_end = strstr(c->answer, "\r\n\r\n");

	if (c->got && strncmp(c->answer, "HTTP/1.1 200 ", 13) != 0)
		return NOT_200;
	if (!head_end || strcmp(head_end + 4, body) != 0)
		return ERROR;
	if (length && length < head_end && strtoul(length + 18, NULL, 10) != sizeof body - 1)
		return ERROR;
	return GOOD;
}

static void read_answer(struct client *c)
{
	ssize_t n;

	while ((n = recv(c->socket, c->answer + c->got, ANSWER_BYTES_MAX - c->got, 0)) > 0) {
		const char *head_end;

		c->got += (size_t)n;
		c->answer[c->got] = '\0';
		if (!c->body_ns && (head_end = strstr(c->answer, "\r\n\r\n")) && head_end[4] != '\0')
			c->body_ns = now_ns();
	}
	if (n == 0) /* its end, or more than any answer has */
		end(c, judged(c));
	else if (errno != EAGAIN)
		end(c, ERROR);
}

/* What is to come of an answer that is kept: the first bytes of it are the head's. Returns 0 when it is not what is
 * expected. */
static int take(struct client *c, const char *bytes, size_t len)
{
	const char *head_end, *length;

	while (!c->body_ns && len > 0) {
		size_t before = c->got, count = ANSWER_BYTES_MAX - before;

		if (count == 0)
			return 0;
		if (count > len)
			count = len;
		memcpy(c->answer + before, bytes, count);
		c->got += count;
		c->answer[c->got] = '\0';
		if (!(head_end = strstr(c->answer, "\r\n\r\n"))) {
			bytes += count;
			len -= count;
			continue;
		}
		c->got = (size_t)(head_end + 4 - c->answer);
		c->answer[c->got] = '\0';
		length = strcasestr(c->answer, "\r\nContent-Length: ");
		if (!length || strtoul(length + 18, NULL, 10) != kept_body_len)
			return 0;
		c->body_ns = now_ns();
		bytes += c->got - before;
		len -= c->got - before;
	}
	if (len > kept_body_len - c->body_got)
		return 0;
	while (len > 0) {
		size_t at = c->body_got % (sizeof body - 1), count = sizeof body - 1 - at;

		if (count > len)
			count = len;
		if (memcmp(bytes, body + at, count) != 0)
			return 0;
		c->body_got += count;
		bytes += count;
		len -= count;
	}
	return 1;
}

/* Of a connection that is kept. */
static void read_kept(struct client *c)
{
	static char bytes[256 * 1024];
	ssize_t n = recv(c->socket, bytes, sizeof bytes, 0);

	if (n < 0 && errno == EAGAIN)
		return;
	if (c->state == IDLE) { /* the gateway has had enough of it, or says what nobody asked */
		errors += n > 0;
		close(c->socket);
		c->socket = -1;
	} else if (n <= 0 || !take(c, bytes, (size_t)n)) {
		end(c, ERROR);
	} else if (c->body_got == kept_body_len) {
		end(c, strncmp(c->answer, "HTTP/1.1 200 ", 13) == 0 ? GOOD : NOT_200);
	}
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
			else if (kept_body_len)
				read_kept(c);
			else
				read_answer(c);
			if (c->state == IDLE && begun < requests)
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
	const char *token = NULL;

	for (int o; (o = getopt(argc, argv, "p:b:c:n:w:t:k:")) != -1;) {
		switch (o) {
		case 'p': gateway.sin_port = htons((in_port_t)atoi(optarg)); break;
		case 'b': token = optarg; break;
		case 'c': clients_count = atoi(optarg); break;
		case 'n': requests = atol(optarg); break;
		case 'w': warmup = atol(optarg); break;
		case 't': seconds_max = atoi(optarg); break;
		case 'k': kept_body_len = strtoul(optarg, NULL, 10); break;
		default: return 2;
		}
	}
	if (!token)
		return 2;
	request_len = (size_t)snprintf(request, sizeof request, request_format, token, kept_body_len ? "keep-alive" : "close");
	if (gateway.sin_port == 0 || request_len >= sizeof request ||
	    clients_count < 1 || requests < 1 || warmup < 0)
		return 2;
	gateway.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	clients = calloc((size_t)clients_count, sizeof *clients);
	for (int i = 0; i < clients_count; i++)
		clients[i].socket = -1;
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
