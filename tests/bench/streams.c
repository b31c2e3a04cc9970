/*
 * The clients of event streams: opens as many as it is told, a bounded number
 * at a time, and reads what comes.
 *
 * usage: streams -p PORT -b TOKEN [-o OPENING_MAX] [-s]
 *
 * Each line on standard input is a number: of streams to be held from then on,
 * never fewer than before. When every one has had its first message, or has
 * failed, or SECONDS_MAX are over, prints one line of JSON; the same number
 * again asks for another such line. Ends, and resets every stream, at the end
 * of its input. With -s nothing is read of a stream once it is held.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "request.h"

enum { FDS_MAX = 65536, HEAD_BYTES_MAX = 1024, SECONDS_MAX = 60 };

static const char mark[] = "data: "; /* once in each message, which comes whole */

static struct sockaddr_in gateway = { .sin_family = AF_INET };
static char request[2048];
static size_t request_len;
static struct stream { /* by descriptor */
	enum { NONE, CONNECTING, OPENING, HELD } state;
	size_t got;
	char *head; /* until its end has come */
} streams[FDS_MAX];
static long begun, opening, held, failed, ended, messages;
static int epoll, is_stalled;

static void begin(void)
{
	int s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	struct epoll_event e = { .events = EPOLLOUT, .data.fd = s };
	struct linger reset = { 1, 0 }; /* thousands in TIME_WAIT would meet the next peer */

	begun++;
	if (s < 0 || s >= FDS_MAX) {
		perror("socket");
		failed++;
		if (s >= 0)
			close(s);
		return;
	}
	setsockopt(s, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
	if ((connect(s, (struct sockaddr *)&gateway, sizeof gateway) < 0 && errno != EINPROGRESS) ||
	    epoll_ctl(epoll, EPOLL_CTL_ADD, s, &e) < 0) {
		perror("connect");
		failed++;
		close(s);
		return;
	}
	streams[s] = (struct stream){ .state = CONNECTING };
	opening++;
}

static void end(int s)
{
	if (streams[s].state == HELD) {
		held--;
		ended++;
	} else {
		opening--;
		failed++;
	}
	free(streams[s].head);
	streams[s] = (struct stream){ .state = NONE };
	close(s);
}

static long messages_in(const char *bytes, size_t len)
{
	const char *at = bytes, *end = bytes + len;
	long n = 0;

	while ((at = memmem(at, (size_t)(end - at), mark, sizeof mark - 1))) {
		at += sizeof mark - 1;
		n++;
	}
	return n;
}

/* The first piece of a stream that has its first message in it makes it held. */
static void read_head(int s, const char *bytes, size_t len)
{
	struct stream *stream = &streams[s];
	const char *end_of_head;
	long n;

	if (!stream->head && !(stream->head = malloc(HEAD_BYTES_MAX + 1)))
		exit(1);
	if (len > HEAD_BYTES_MAX - stream->got)
		len = HEAD_BYTES_MAX - stream->got;
	memcpy(stream->head + stream->got, bytes, len);
	stream->got += len;
	stream->head[stream->got] = '\0';
	end_of_head = strstr(stream->head, "\r\n\r\n");
	if (end_of_head && strncmp(stream->head, "HTTP/1.1 200 ", 13) != 0) {
		if (failed == 0)
			fprintf(stderr, "%.*s\n", (int)strcspn(stream->head, "\r"), stream->head);
		end(s);
	} else if (end_of_head && (n = messages_in(end_of_head, stream->got - (size_t)(end_of_head - stream->head)))) {
		messages += n;
		free(stream->head);
		stream->head = NULL;
		stream->state = HELD;
		opening--;
		held++;
		if (is_stalled)
			epoll_ctl(epoll, EPOLL_CTL_DEL, s, NULL);
	} else if (stream->got == HEAD_BYTES_MAX) {
		end(s);
	}
}

static void look_at(int s)
{
	static char bytes[65536];
	struct epoll_event e = { .events = EPOLLIN, .data.fd = s };
	ssize_t n;

	if (streams[s].state == CONNECTING) {
		streams[s].state = OPENING;
		if (send(s, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len)
			end(s);
		else
			epoll_ctl(epoll, EPOLL_CTL_MOD, s, &e);
		return;
	}
	n = recv(s, bytes, sizeof bytes, 0);
	if (n <= 0 && !(n < 0 && errno == EAGAIN))
		end(s);
	else if (n > 0 && streams[s].state == HELD)
		messages += messages_in(bytes, (size_t)n);
	else if (n > 0)
		read_head(s, bytes, (size_t)n);
}

/* The next number on standard input; -1 if there is none yet; ends the program with the input. */
static long asked(void)
{
	static char line[64];
	static size_t len;
	char *newline;
	long number;
	ssize_t n;

	struct pollfd input = { .fd = 0, .events = POLLIN };

	if (poll(&input, 1, 0) == 1) {
		n = read(0, line + len, sizeof line - 1 - len);
		if (n <= 0)
			exit(0);
		len += (size_t)n;
	}
	if (!(newline = memchr(line, '\n', len)))
		return -1;
	number = strtol(line, NULL, 10);
	len -= (size_t)(newline + 1 - line);
	memmove(line, newline + 1, len);
	return number;
}

int main(int argc, char **argv)
{
	struct epoll_event events[512];
	struct rlimit fds;
	long wanted = 0, opening_max = 64, number;
	time_t due = 0;

	for (int o; (o = getopt(argc, argv, "p:b:o:s")) != -1;) {
		switch (o) {
		case 'p': gateway.sin_port = htons((in_port_t)atoi(optarg)); break;
		case 'b': request_len = (size_t)snprintf(request, sizeof request, request_format, optarg, "close"); break;
		case 's': is_stalled = 1; break;
		case 'o': opening_max = atol(optarg); break;
		default: return 2;
		}
	}
	if (gateway.sin_port == 0 || request_len == 0 || request_len >= sizeof request || opening_max < 1)
		return 2;
	gateway.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	getrlimit(RLIMIT_NOFILE, &fds);
	fds.rlim_cur = fds.rlim_max;
	setrlimit(RLIMIT_NOFILE, &fds);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	for (;;) {
		int n;

		if (!due && (number = asked()) >= 0) {
			wanted = number;
			due = time(NULL) + SECONDS_MAX;
		}
		while (begun < wanted && opening < opening_max)
			begin();
		if (due && ((begun >= wanted && opening == 0) || time(NULL) > due)) {
			printf("{\"held\": %ld, \"opening\": %ld, \"failed\": %ld, \"ended\": %ld, \"messages\": %ld}\n",
			    held, opening, failed, ended, messages);
			fflush(stdout);
			due = 0;
		}
		n = epoll_wait(epoll, events, 512, 10);
		for (int i = 0; i < n; i++)
			look_at(events[i].data.fd);
	}
}
