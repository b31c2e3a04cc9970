/*
 * The floor: the least that a gateway can do and still hand clients over. It
 * reads a request head and passes the client's socket to a daemon, on a
 * SOCK_SEQPACKET connection of its own. No parser, no routes, no policy, no
 * log: what a real gateway costs above it is the price of what it adds.
 *
 * usage: gateway SOCKET none|read WORKERS
 *
 * The second argument is what it promises about a handoff:
 *   none  the client is closed here as soon as the message is sent; a daemon
 *         that dies with the message unread takes the client with it
 *   read  the client is kept until the daemon has read the message, and is
 *         answered 503 if it never does. The kernel tells: a message that was
 *         read no longer counts in SIOCOUTQ, its release makes the connection
 *         writable again, and one that can no longer be read is ECONNRESET
 *
 * The head is taken by recv, not peeked. What stands behind it could not go
 * along, so a client that sent more than a head is answered 501.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <linux/sockios.h>
#include <unistd.h>

enum {
	CONNECT_TRIES_MAX = 500, /* 200 us apart: 100 ms */
	FDS_MAX = 65536,
	HEAD_BYTES_MAX = 8192,
	SWEEP_MS = 100,
	SWEEPS_MAX = 10, /* from sending a message to its being read: 1 s */
};

enum state { FRESH, WATCHED }; /* by epoll */

struct part { /* of a head that came in pieces; most come whole and need none */
	size_t len;
	char bytes[HEAD_BYTES_MAX];
};

static struct sockaddr_un daemon_address = { .sun_family = AF_UNIX };
static int epoll;
static enum { PROMISE_NONE, PROMISE_READ } promise;
static struct part *parts[FDS_MAX]; /* by client */
/* By connection to the daemon: whose message on it is unread (0: none), for how long. */
static int unread_clients[FDS_MAX], unread_sweeps[FDS_MAX];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void watch(int fd, uint32_t events)
{
	struct epoll_event e = { .events = events, .data.fd = fd };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) < 0)
		die("epoll_ctl");
}

/* Answers a client that is still ours and seals the answer: a daemon that reads
 * a message after all, too late to be taken back, finds a client shut down. */
static void refuse(int client, const char *status)
{
	char answer[128];
	int len = snprintf(answer, sizeof answer,
	    "HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", status);

	send(client, answer, (size_t)len, MSG_NOSIGNAL);
	shutdown(client, SHUT_RDWR);
	close(client);
}

/* A new connection to the daemon, or -1. EAGAIN is a full backlog: the whole
 * worker waits, as it has nowhere else to send anybody. */
static int daemon_connect(void)
{
	int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	for (int tries = 0; s >= 0; tries++) {
		if (connect(s, (struct sockaddr *)&daemon_address, sizeof daemon_address) == 0)
			break;
		if (errno == EAGAIN && tries < CONNECT_TRIES_MAX) {
			usleep(200);
			continue;
		}
		close(s);
		s = -1;
	}
	return s;
}

static int send_client(int s, int client, char *data, size_t len)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec iov = { data, len };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof control };

	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&control.header), &client, sizeof client);
	return sendmsg(s, &m, MSG_NOSIGNAL) < 0 ? -1 : 0;
}

/* The client of an unread message; the connection is closed. */
static int unread_end(int s)
{
	int client = unread_clients[s];

	unread_clients[s] = unread_sweeps[s] = 0;
	close(s);
	return client;
}

/* Something happened to the connection whose message is unread: was it read?
 * The event can come while the last byte of what is counted is not given back
 * yet. And the end of the connection can be seen a moment before its reset: what
 * counts as unread must be seen to end twice. */
static void look_at_unread(int s)
{
	int queued = 0;
	ssize_t n;
	char byte;

	ioctl(s, SIOCOUTQ, &queued);
	n = recv(s, &byte, 1, 0);
	if (n == 0 && queued > 1)
		n = recv(s, &byte, 1, 0);
	if (n == 0 || (n < 0 && errno == EAGAIN && queued <= 1))
		close(unread_end(s)); /* yes: the client is the daemon's */
	else if (errno != EAGAIN)
		refuse(unread_end(s), "503 Service Unavailable"); /* never: it is ours */
}

static void give_up_overdue(int timer)
{
	uint64_t ticks;

	if (read(timer, &ticks, sizeof ticks) < 0)
		return;
	for (int s = 0; s < FDS_MAX; s++)
		if (unread_clients[s] && ++unread_sweeps[s] > SWEEPS_MAX)
			refuse(unread_end(s), "503 Service Unavailable");
}

static void hand_over(int client, const char *head, size_t len)
{
	const char *method_end = memchr(head, ' ', len);
	const char *target = method_end ? method_end + 1 : NULL;
	const char *target_end = target ? memchr(target, ' ', len - (size_t)(target - head)) : NULL;
	char data[512];
	int data_len, s;

	if (!target_end || method_end - head > 20 || target_end - target > 200) {
		refuse(client, "400 Bad Request");
		return;
	}
	data_len = snprintf(data, sizeof data,
	    "{\"version\":1,\"method\":\"%.*s\",\"target\":\"%.*s\",\"user\":\"u-12345\",\"head_bytes\":%zu}",
	    (int)(method_end - head), head, (int)(target_end - target), target, len);
	s = daemon_connect();
	if (s < 0 || send_client(s, client, data, (size_t)data_len) < 0) {
		refuse(client, "503 Service Unavailable");
		if (s >= 0)
			close(s);
	} else if (promise == PROMISE_READ) {
		unread_clients[s] = client;
		watch(s, EPOLLET | EPOLLIN | EPOLLOUT | EPOLLRDHUP);
	} else {
		close(client);
		close(s);
	}
}

/* Reads from a client and hands it over when its head is there. */
static void read_head(int client, enum state state)
{
	static char whole[HEAD_BYTES_MAX];
	struct part *part = parts[client];
	char *head = part ? part->bytes : whole;
	size_t had = part ? part->len : 0;
	ssize_t n = recv(client, head + had, HEAD_BYTES_MAX - had, 0);
	size_t len = had + (n > 0 ? (size_t)n : 0);
	const char *end = n > 0 ? memmem(head, len, "\r\n\r\n", 4) : NULL;

	if (!end && (n > 0 ? len < HEAD_BYTES_MAX : n < 0 && errno == EAGAIN)) {
		if (n > 0 && !part) {
			if (!(part = parts[client] = malloc(sizeof *part)))
				die("malloc");
			memcpy(part->bytes, whole, len);
		}
		if (part)
			part->len = len;
		if (state == FRESH)
			watch(client, EPOLLIN | EPOLLRDHUP);
		return;
	}
	/* A registration belongs to the open file and would live on in the daemon. */
	if (state == WATCHED)
		epoll_ctl(epoll, EPOLL_CTL_DEL, client, NULL);
	if (end && end + 4 == head + len)
		hand_over(client, head, len);
	else if (n > 0)
		refuse(client, end ? "501 Not Implemented" : "431 Request Header Fields Too Large");
	else
		close(client);
	free(part);
	parts[client] = NULL;
}

static void work(int listener)
{
	struct itimerspec every = { { 0, SWEEP_MS * 1000000 }, { 0, SWEEP_MS * 1000000 } };
	int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	struct epoll_event events[256];

	epoll = epoll_create1(EPOLL_CLOEXEC);
	watch(listener, EPOLLIN);
	watch(timer, EPOLLIN);
	if (promise == PROMISE_READ)
		timerfd_settime(timer, 0, &every, NULL);
	for (;;) {
		int n = epoll_wait(epoll, events, 256, -1);

		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd, client;

			if (unread_clients[fd])
				look_at_unread(fd);
			else if (fd == timer)
				give_up_overdue(timer);
			else if (fd != listener)
				read_head(fd, WATCHED);
			else
				for (int k = 0; k < 64 && (client = accept4(listener, NULL, NULL,
				    SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0; k++)
					read_head(client, FRESH);
		}
	}
}

/* One of a group of listeners on the same port, among which the kernel shares
 * out connections; `port` 0 asks for a free one and is set to it. */
static int listen_on(in_port_t *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = *port,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof a;
	int one = 1, s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	setsockopt(s, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
	if (bind(s, (struct sockaddr *)&a, sizeof a) < 0 || listen(s, 4096) < 0 ||
	    getsockname(s, (struct sockaddr *)&a, &len) < 0)
		die("listen");
	*port = a.sin_port;
	return s;
}

int main(int argc, char **argv)
{
	struct rlimit fds = { FDS_MAX, FDS_MAX };
	in_port_t port = 0;

	if (argc != 4 || strlen(argv[1]) >= sizeof daemon_address.sun_path)
		return 2;
	strcpy(daemon_address.sun_path, argv[1]);
	promise = strcmp(argv[2], "read") == 0 ? PROMISE_READ : PROMISE_NONE;
	setrlimit(RLIMIT_NOFILE, &fds); /* the tables are indexed by descriptor */
	for (int workers = atoi(argv[3]); workers > 0; workers--) {
		int listener = listen_on(&port);

		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			work(listener);
		}
		close(listener);
	}
	fprintf(stderr, "listening on http://127.0.0.1:%d\n", ntohs(port));
	wait(NULL); /* a worker that died is the end of all */
	return 1;
}
