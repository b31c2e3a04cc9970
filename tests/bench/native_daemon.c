/*
 * The daemon behind gateways that speak the native protocol: takes each client,
 * gives the same small answer as daemon.c, and says so. One thread.
 *
 * usage: native_daemon -u SOCKET [-b BATCH]
 *
 * -b is how many clients are taken with one packet at most; the words about
 * those before (DONE, RETURN) stand in front of it, and go alone only when there
 * is nobody new. 0: each word is a packet of its own, said at once.
 *
 * A client that asks for `Connection: close` is closed (DONE), any other comes
 * back (RETURN). Says `ready` on standard output when it listens. USR1: prints
 * one line of JSON, how many it answered, how many of these came back, and how
 * many it could not answer.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "answer.h"
#include "native.h"

enum {
	BATCH_MAX = 64,
	CHANNELS_MAX = 1024, /* descriptors of ours below this can be channels */
	IN_FLIGHT_MAX = 1000,
	WORD_BYTES_MAX = 160,
};

#define CLOSES "[\"connection\",\"close\"]"

static const char answer_kept[] = HEAD("text/plain") KEPT "\r\n" BODY;

struct lent {
	uint64_t id;
	int client, closes;
};

static struct said { /* on a channel, and not sent yet */
	char bytes[3 * BATCH_MAX * WORD_BYTES_MAX];
	size_t len;
	int descriptors[BATCH_MAX]; /* of clients that go back */
	size_t descriptors_count;
} *said_on[CHANNELS_MAX];

static int epoll, batch;
static unsigned long answered, returned, failed;
static struct packet packet;

static void watch(int fd)
{
	struct epoll_event e = { .events = EPOLLIN, .data.fd = fd };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) < 0)
		die("epoll_ctl");
}

static long now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Sends what was said. Returns -1 if the gateway has gone; a client that was to go back ends here then. */
static int flush(int channel)
{
	struct said *said = said_on[channel];
	struct iovec part = { said->bytes, said->len };
	int sent = said->len > 0 ? packet_send(channel, &part, 1, said->descriptors, said->descriptors_count) : 0;

	while (said->descriptors_count > 0)
		close(said->descriptors[--said->descriptors_count]);
	said->len = 0;
	return sent;
}

/* Adds a word with its payload. */
static void say(struct said *said, int type, uint64_t id, const void *payload, size_t len)
{
	struct frame f = frame_of(type, id, len);

	memcpy(said->bytes + said->len, &f, sizeof f);
	memcpy(said->bytes + said->len + sizeof f, payload, len);
	said->len += sizeof f + len;
}

static void serve(struct said *said, const struct lent *lent, long taken_us)
{
	const char *answer = lent->closes ? answer_closed : answer_kept;
	size_t len = lent->closes ? sizeof answer_closed - 1 : sizeof answer_kept - 1;
	char payload[4 + WORD_BYTES_MAX + 4];
	int is_whole = send(lent->client, answer, len, MSG_NOSIGNAL) == (ssize_t)len, comes_back = is_whole && !lent->closes;
	uint32_t report_len;

	if (is_whole)
		answered++;
	else
		failed++;
	/* The gateway took the head, so nothing of it is unread and close() ends the answer by FIN. */
	if (!comes_back)
		close(lent->client);
	report_len = (uint32_t)sprintf(payload + 4,
	    "{\"status\":200,\"bytes_out\":%zu,\"duration_us\":%ld,\"result\":\"%s\"}",
	    is_whole ? len : 0, now_us() - taken_us, is_whole ? "ok" : "client-gone");
	if (!comes_back) {
		say(said, DONE, lent->id, payload + 4, report_len);
		return;
	}
	memcpy(payload, &report_len, 4);
	memset(payload + 4 + report_len, 0, 4); /* nothing was read of the client */
	say(said, RETURN, lent->id, payload, 4 + report_len + 4);
	said->descriptors[said->descriptors_count++] = lent->client;
	returned++;
}

/* Reads a packet, and adds whom it lends. Returns as packet_receive. */
static int read_packet(int channel, struct lent *lent, int *count)
{
	size_t at = 0, descriptor = 0;
	struct frame f;
	int got = packet_receive(channel, &packet);

	while (got > 0 && next_frame(&packet, &at, &f)) {
		char *payload = packet.bytes + at - f.payload_len;

		if (f.type == HANDOFF && f.flags == 0 && *count < BATCH_MAX && descriptor < packet.descriptors_count) {
			lent[(*count)++] = (struct lent){ f.id, packet.descriptors[descriptor++],
				memmem(payload, f.payload_len, CLOSES, sizeof CLOSES - 1) != NULL };
		} else if (f.type == PING) {
			pong_send(channel, payload, f.payload_len);
		} else if (f.type != HELLO && f.type != PONG) {
			die("a frame that no gateway here sends");
		}
	}
	return got;
}

/* Serves a channel until there is nothing more to read. */
static void look_at(int channel)
{
	struct said *said = said_on[channel];
	struct lent lent[BATCH_MAX];
	int got, count;

	do {
		long taken_us;

		count = 0;
		while ((got = read_packet(channel, lent, &count)) > 0 && count < batch)
			;
		for (int i = 0; i < count; i++)
			say(said, TAKEN, lent[i].id, NULL, 0);
		/* With TAKEN, or because nothing has come and this is about to wait. */
		if ((count > 0 || got <= 0) && flush(channel) < 0) {
			got = -1; /* they are not ours */
			failed += (unsigned long)count;
			while (count > 0)
				close(lent[--count].client);
		}
		taken_us = now_us();
		for (int i = 0; i < count; i++) {
			serve(said, &lent[i], taken_us);
			if (batch == 0)
				flush(channel);
		}
	} while (got > 0 || count > 0);
	if (got < 0) {
		free(said);
		said_on[channel] = NULL;
		close(channel);
	}
}

static int listen_on(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
	umask(0); /* gateways that were started as root come as somebody else */
	if (bind(s, (struct sockaddr *)&a, sizeof a) < 0 || listen(s, 64) < 0)
		die(path);
	return s;
}

static void greet(int channel)
{
	if (channel >= CHANNELS_MAX || !(said_on[channel] = calloc(1, sizeof **said_on)))
		die("channels");
	hello_send(channel, "bench", IN_FLIGHT_MAX);
	watch(channel);
}

int main(int argc, char **argv)
{
	struct epoll_event events[64];
	struct signalfd_siginfo info;
	struct rlimit fds;
	const char *path = NULL;
	sigset_t report;
	int listener, signals;

	for (int o; (o = getopt(argc, argv, "u:b:")) != -1;) {
		switch (o) {
		case 'u': path = optarg; break;
		case 'b': batch = atoi(optarg); break;
		default: return 2;
		}
	}
	if (!path || batch < 0 || batch > BATCH_MAX)
		return 2;
	getrlimit(RLIMIT_NOFILE, &fds);
	fds.rlim_cur = fds.rlim_max;
	setrlimit(RLIMIT_NOFILE, &fds);
	sigemptyset(&report);
	sigaddset(&report, SIGUSR1);
	sigprocmask(SIG_BLOCK, &report, NULL);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	watch(signals = signalfd(-1, &report, SFD_CLOEXEC));
	watch(listener = listen_on(path));
	puts("ready");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(epoll, events, 64, -1);

		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd, channel;

			if (fd == signals && read(signals, &info, sizeof info) > 0) {
				printf("{\"answered\": %lu, \"returned\": %lu, \"failed\": %lu}\n", answered, returned, failed);
				fflush(stdout);
			} else if (fd == listener) {
				while ((channel = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
					greet(channel);
			} else {
				look_at(fd);
			}
		}
	}
}
