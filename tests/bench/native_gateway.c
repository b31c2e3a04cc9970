/*
 * The floor of the native protocol: the least that a gateway can do and still
 * lend clients over channels that stay, be told what became of them, and serve
 * them again when they come back. No policy, no log, no reports read; and it
 * does not ask the kernel whether the client that comes back is the one that
 * went.
 *
 * usage: native_gateway SOCKET WORKERS
 *
 * It keeps Baton's promises otherwise: the head is peeked and exactly the head
 * taken, so that what follows stays in the socket; the client is kept until
 * TAKEN and answered 503 at REFUSED, or if no word comes for a second; never
 * more are in flight on a channel than the daemon's HELLO allows. What it tells
 * the daemon of a request has the same members as Baton's, so packets are of
 * the same size. A worker is a thread with a listener (SO_REUSEPORT,
 * TCP_DEFER_ACCEPT) and a channel of its own, as in Baton.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "native.h"

enum {
	DEFER_SECONDS = 1,
	FDS_MAX = 65536,
	HEAD_BYTES_MAX = 8192,
	LOANS_MAX = 8192, /* ids under way at a time are nearer to each other than this */
	METADATA_BYTES_MAX = 64 * 1024, /* of a head of 8 KiB, each byte of which may be six in JSON */
	SWEEP_MS = 100,
	SWEEPS_MAX = 10, /* from HANDOFF to TAKEN: 1 s */
};

struct part { /* of a head that came in pieces; most come whole and need none */
	size_t len;
	char bytes[HEAD_BYTES_MAX];
};

enum { THEIRS = -1, GIVEN_UP = -2 };

struct loan {
	uint64_t id; /* 0: none */
	int client;  /* or whose it is */
	struct sockaddr_in peer;
	int sweeps;
};

static struct sockaddr_un daemon_address = { .sun_family = AF_UNIX };
static struct sockaddr_in own_address;
static struct part *parts[FDS_MAX];         /* by client, of whichever worker */
static struct sockaddr_in peers[FDS_MAX];   /* the same */
static unsigned char is_watched[FDS_MAX];   /* the same */

static __thread int worker, epoll, channel;
static __thread struct loan *loans;
static __thread uint64_t last_id;
static __thread long in_flight, in_flight_max;
static __thread int waiting[FDS_MAX], waiting_first, waiting_count; /* clients to be looked at when there is a credit */
static __thread struct packet packet;

static void watch(int fd)
{
	struct epoll_event e = { .events = EPOLLIN | EPOLLRDHUP, .data.fd = fd };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) < 0)
		die("epoll_ctl");
}

/* Answers a client that is still ours. */
static void refuse(int client, const char *status)
{
	char answer[128];
	int len = snprintf(answer, sizeof answer,
	    "HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", status);

	send(client, answer, (size_t)len, MSG_NOSIGNAL);
	shutdown(client, SHUT_RDWR);
	close(client);
}

/* --- what the daemon is told ------------------------------------------------ */

static char *put(char *to, const char *text)
{
	return stpcpy(to, text);
}

/* Text as JSON. Bytes that are no ASCII go as they are: nobody here sends any. */
static char *quote(char *to, const char *bytes, size_t len)
{
	*to++ = '"';
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)bytes[i];

		if (c == '"' || c == '\\')
			*to++ = '\\';
		if (c < ' ')
			to += sprintf(to, "\\u%04x", c);
		else
			*to++ = (char)c;
	}
	*to++ = '"';
	return to;
}

/* The fields as pairs. `host` is set to the value of that field. Returns NULL at what is none. */
static char *put_fields(char *to, const char *at, const char *end, const char **host, size_t *host_len)
{
	char name[256];
	int is_first = 1;

	while (at < end - 2) { /* the empty line */
		const char *line_end = memmem(at, (size_t)(end - at), "\r\n", 2);
		const char *colon = memchr(at, ':', (size_t)(line_end - at)), *value = colon + 1, *value_end = line_end;
		size_t name_len = colon ? (size_t)(colon - at) : 0;

		if (!colon || name_len == 0 || name_len > sizeof name)
			return NULL;
		for (size_t i = 0; i < name_len; i++)
			name[i] = (char)tolower((unsigned char)at[i]);
		while (value < value_end && (*value == ' ' || *value == '\t'))
			value++;
		while (value < value_end && (value_end[-1] == ' ' || value_end[-1] == '\t'))
			value_end--;
		if (name_len == 4 && memcmp(name, "host", 4) == 0) {
			*host = value;
			*host_len = (size_t)(value_end - value);
		}
		to = put(to, is_first ? "[" : ",[");
		to = quote(to, name, name_len);
		*to++ = ',';
		to = quote(to, value, (size_t)(value_end - value));
		*to++ = ']';
		is_first = 0;
		at = line_end + 2;
	}
	return to;
}

/* Returns the length, or 0 for a head that is no request. */
static size_t put_metadata(char *out, const char *head, size_t len, int client)
{
	static __thread char fields[METADATA_BYTES_MAX];
	const char *end = head + len, *line_end = memmem(head, len, "\r\n", 2), *host = NULL;
	const char *method_end = memchr(head, ' ', (size_t)(line_end - head));
	const char *target = method_end ? method_end + 1 : line_end;
	const char *target_end = memchr(target, ' ', (size_t)(line_end - target));
	size_t host_len;
	char *fields_end, address[INET_ADDRSTRLEN];
	char *to = out;

	if (!target_end || line_end - target_end != 9 || memcmp(target_end, " HTTP/1.", 8) != 0)
		return 0;
	fields_end = put_fields(fields, line_end + 2, end, &host, &host_len);
	if (!fields_end || !host)
		return 0;
	to += sprintf(to, "{\"id\":\"%013llx%013llx\",\"request\":{\"method\":",
	    (unsigned long long)worker, (unsigned long long)last_id + 1);
	to = quote(to, head, (size_t)(method_end - head));
	to = put(to, ",\"target\":");
	to = quote(to, target, (size_t)(target_end - target));
	to = put(to, ",\"version\":");
	to = quote(to, line_end - 3, 3);
	to = put(to, ",\"scheme\":\"http\",\"authority\":");
	to = quote(to, host, host_len);
	to = put(to, ",\"headers\":[");
	memcpy(to, fields, (size_t)(fields_end - fields));
	to += fields_end - fields;
	inet_ntop(AF_INET, &peers[client].sin_addr, address, sizeof address);
	to += sprintf(to, "]},\"client\":{\"ip\":\"%s\",\"port\":%d}", address, ntohs(peers[client].sin_port));
	inet_ntop(AF_INET, &own_address.sin_addr, address, sizeof address);
	to += sprintf(to, ",\"server\":{\"ip\":\"%s\",\"port\":%d,\"listener\":\"http\"}", address, ntohs(own_address.sin_port));
	to = put(to, ",\"connection\":\"direct\",\"body\":{\"framing\":\"none\",\"remaining\":0},"
	    "\"response\":{\"head_sent\":false},\"metadata\":{}}");
	return (size_t)(to - out);
}

/* --- clients ---------------------------------------------------------------- */

static void lend(int client, const char *head, size_t len)
{
	static __thread char metadata[METADATA_BYTES_MAX + 4096];
	size_t metadata_bytes = put_metadata(metadata, head, len, client);
	uint32_t metadata_len = (uint32_t)metadata_bytes, none[2] = { 0, 0 }; /* data, preread */
	struct frame f = frame_of(HANDOFF, last_id + 1, 4 + metadata_bytes + sizeof none);
	struct iovec bytes[] = { { &f, sizeof f }, { &metadata_len, 4 }, { metadata, metadata_bytes }, { none, sizeof none } };
	struct loan *loan = &loans[f.id % LOANS_MAX];

	if (metadata_bytes == 0) {
		refuse(client, "400 Bad Request");
		return;
	}
	if (loan->id)
		die("more clients than loans");
	if (packet_send(channel, bytes, 4, &client, 1) < 0) {
		refuse(client, "503 Service Unavailable");
		return;
	}
	last_id++;
	in_flight++;
	*loan = (struct loan){ f.id, client, peers[client], 0 };
}

/* Looks at a client, and lends it when its head is there. */
static void look_at(int client)
{
	static __thread char whole[HEAD_BYTES_MAX];
	struct part *part = parts[client];
	char *head = part ? part->bytes : whole;
	size_t had = part ? part->len : 0, len = had;
	const char *end = NULL;
	ssize_t n;

	if (in_flight >= in_flight_max) { /* its turn comes */
		if (is_watched[client])
			epoll_ctl(epoll, EPOLL_CTL_DEL, client, NULL);
		is_watched[client] = 0;
		waiting[(waiting_first + waiting_count++) % FDS_MAX] = client;
		return;
	}
	n = recv(client, head + had, HEAD_BYTES_MAX - had, MSG_PEEK);
	if (n > 0) {
		size_t take;

		len = had + (size_t)n;
		end = memmem(head, len, "\r\n\r\n", 4);
		take = end ? (size_t)(end + 4 - head) - had : (size_t)n;
		if (recv(client, head + had, take, 0) != (ssize_t)take)
			n = 0;
	}
	if (!end && (n > 0 ? len < HEAD_BYTES_MAX : n < 0 && errno == EAGAIN)) {
		if (n > 0 && !part) {
			if (!(part = parts[client] = malloc(sizeof *part)))
				die("malloc");
			memcpy(part->bytes, whole, len);
		}
		if (part)
			part->len = len;
		if (!is_watched[client])
			watch(client);
		is_watched[client] = 1;
		return;
	}
	/* A registration belongs to the open file and would live on in the daemon. */
	if (is_watched[client])
		epoll_ctl(epoll, EPOLL_CTL_DEL, client, NULL);
	is_watched[client] = 0;
	parts[client] = NULL;
	if (end && n > 0)
		lend(client, head, (size_t)(end + 4 - head));
	else if (n > 0)
		refuse(client, "431 Request Header Fields Too Large");
	else
		close(client);
	free(part);
}

/* In the order of the packets; most have sent the next request by the time that all are read. */
static void come_back(int client, const struct loan *loan)
{
	peers[client] = loan->peer;
	waiting[(waiting_first + waiting_count++) % FDS_MAX] = client;
}

/* --- the channel ------------------------------------------------------------- */

static struct loan *loan_of(uint64_t id)
{
	struct loan *loan = &loans[id % LOANS_MAX];

	if (loan->id != id)
		die("a word about nobody");
	return loan;
}

/* Reads what the daemon says, until there is nothing more. */
static void listen_to_daemon(void)
{
	int got;

	while ((got = packet_receive(channel, &packet)) > 0) {
		size_t at = 0, descriptor = 0;
		struct frame f;

		while (next_frame(&packet, &at, &f)) {
			struct loan *loan = f.id ? loan_of(f.id) : NULL;
			char *payload = packet.bytes + at - f.payload_len;

			switch (f.type) {
			case HELLO:
				payload = memmem(payload, f.payload_len, "\"in_flight_max\":", 16);
				in_flight_max = payload ? strtol(payload + 16, NULL, 10) : 0;
				break;
			case TAKEN:
				if (loan->client == THEIRS)
					die("TAKEN twice");
				if (loan->client >= 0) {
					close(loan->client);
					loan->client = THEIRS;
				}
				break;
			case REFUSED:
				if (loan->client >= 0)
					refuse(loan->client, "503 Service Unavailable");
				in_flight--;
				loan->id = 0;
				break;
			case RETURN:
				if (descriptor == packet.descriptors_count)
					die("RETURN of nobody");
				come_back(packet.descriptors[descriptor++], loan);
				/* fall through */
			case DONE:
				if (loan->client >= 0)
					die("the end of a client that was not taken");
				in_flight--;
				loan->id = 0;
				break;
			case PING:
				pong_send(channel, payload, f.payload_len);
				break;
			}
		}
	}
	if (got < 0)
		die("the daemon has gone");
	while (waiting_count > 0 && in_flight < in_flight_max) {
		int client = waiting[waiting_first];

		waiting_first = (waiting_first + 1) % FDS_MAX;
		waiting_count--;
		look_at(client);
	}
}

static void give_up_overdue(int timer)
{
	uint64_t ticks;

	if (read(timer, &ticks, sizeof ticks) < 0)
		return;
	for (int i = 0; i < LOANS_MAX; i++)
		if (loans[i].id && loans[i].client >= 0 && ++loans[i].sweeps > SWEEPS_MAX) {
			refuse(loans[i].client, "503 Service Unavailable");
			loans[i].client = GIVEN_UP;
		}
}

static void *work(void *of)
{
	struct itimerspec every = { { 0, SWEEP_MS * 1000000 }, { 0, SWEEP_MS * 1000000 } };
	int listener = (int)(intptr_t)of, timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	struct epoll_event events[256];

	loans = calloc(LOANS_MAX, sizeof *loans);
	worker = gettid();
	epoll = epoll_create1(EPOLL_CLOEXEC);
	channel = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (!loans || connect(channel, (struct sockaddr *)&daemon_address, sizeof daemon_address) < 0)
		die("the daemon");
	hello_send(channel, "floor", 0);
	watch(channel);
	watch(listener);
	watch(timer);
	timerfd_settime(timer, 0, &every, NULL);
	for (;;) {
		int n = epoll_wait(epoll, events, 256, -1);

		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd, client;
			struct sockaddr_in peer;
			socklen_t len = sizeof peer;

			if (fd == channel)
				listen_to_daemon();
			else if (fd == timer)
				give_up_overdue(timer);
			else if (fd != listener)
				look_at(fd);
			else
				for (int k = 0; k < 64 && (client = accept4(listener, (struct sockaddr *)&peer, &len,
				    SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0; k++) {
					peers[client] = peer;
					look_at(client);
				}
		}
	}
	return NULL;
}

/* One of a group of listeners on the same port, among which the kernel shares
 * out connections; the first asks for a free one. */
static int listen_on_port(void)
{
	socklen_t len = sizeof own_address;
	int one = 1, seconds = DEFER_SECONDS, s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	setsockopt(s, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
	setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	setsockopt(s, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds);
	if (bind(s, (struct sockaddr *)&own_address, sizeof own_address) < 0 || listen(s, 4096) < 0 ||
	    getsockname(s, (struct sockaddr *)&own_address, &len) < 0)
		die("listen");
	return s;
}

int main(int argc, char **argv)
{
	struct rlimit fds = { FDS_MAX, FDS_MAX };
	int workers = argc == 3 ? atoi(argv[2]) : 0, listeners[64];
	pthread_t last;

	if (workers < 1 || workers > 64 || strlen(argv[1]) >= sizeof daemon_address.sun_path)
		return 2;
	strcpy(daemon_address.sun_path, argv[1]);
	own_address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	setrlimit(RLIMIT_NOFILE, &fds); /* the tables are indexed by descriptor */
	for (int i = 0; i < workers; i++)
		listeners[i] = listen_on_port();
	for (int i = 0; i < workers; i++)
		if (pthread_create(&last, NULL, work, (void *)(intptr_t)listeners[i]) != 0)
			die("pthread_create");
	fprintf(stderr, "listening on http://127.0.0.1:%d\n", ntohs(own_address.sin_port));
	pthread_join(last, NULL);
	return 1;
}
