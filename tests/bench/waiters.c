/* Many framed clients in one process.
 *
 *   waiters -u USER -s SOCKET -n COUNT PROGRAM
 *
 * Opens COUNT connections and asks for PROGRAM on each of them. When every one is accepted, it
 * prints "accepted N SECONDS" and waits for a line on its standard input. Then it reads until
 * every one is answered and prints "answered N SECONDS ended E errors X lost L runs R": how many
 * got a final record, an error, or a closed connection, and how many different runs those
 * records are of. The seconds of the second line count from the moment the line was read. */
#include "common.h"
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

enum state { ASKED, ACCEPTED, ANSWERED };

/* What has arrived of a frame. Messages here are some hundred bytes. */
struct waiter {
	int fd;
	enum state state;
	size_t length;
	unsigned char bytes[8192];
};

static struct waiter *waiters;
static int count, accepted, answered, ended, errors, lost, runs;
static long seen[64];

static void note_run(const char *message)
{
	const char *run = strstr(message, "\"run\":{");
	const char *id = run ? strstr(run, "\"id\":") : NULL;
	long number = id ? atol(id + 5) : -1;
	int known = 0;
	for (int i = 0; i < runs && i < 64; i++)
		known |= seen[i] == number;
	if (!known && runs < 64)
		seen[runs++] = number;
}

static void finish(struct waiter *w, int *kind)
{
	if (w->state == ANSWERED)
		return;
	if (w->state == ASKED)
		accepted++;
	w->state = ANSWERED;
	answered++;
	++*kind;
}

static void message(struct waiter *w, const char *text)
{
	if (strstr(text, "\"type\":\"accepted\"") && w->state == ASKED) {
		w->state = ACCEPTED;
		accepted++;
	} else if (strstr(text, "\"type\":\"ended\"")) {
		note_run(text);
		finish(w, &ended);
	} else if (strstr(text, "\"type\":\"error\"")) {
		if (!errors)
			fprintf(stderr, "waiters: %s\n", text);
		finish(w, &errors);
	}
}

static void readable(struct waiter *w)
{
	ssize_t n = read(w->fd, w->bytes + w->length, sizeof w->bytes - w->length);
	if (n <= 0) {
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		finish(w, &lost);
		close(w->fd);
		return;
	}
	w->length += n;
	size_t at = 0;
	while (w->length - at >= 5) {
		const unsigned char *frame = w->bytes + at;
		size_t size = (size_t)frame[1] << 24 | frame[2] << 16 | frame[3] << 8 | frame[4];
		if (frame[0] > 4 || size > sizeof w->bytes - 6)
			die("no frame: %.40s", (const char *)frame);
		if (w->length - at < 5 + size)
			break;
		if (frame[0] == 1) {
			char text[sizeof w->bytes];
			memcpy(text, frame + 5, size);
			text[size] = 0;
			message(w, text);
		}
		at += 5 + size;
	}
	memmove(w->bytes, w->bytes + at, w->length - at);
	w->length -= at;
}

/* Handles what comes until the counter reaches the number of waiters. */
static void until_all(int epoll, const int *counter)
{
	struct epoll_event events[256];
	while (*counter < count) {
		int n = epoll_wait(epoll, events, 256, 60000);
		if (n == 0)
			die("nothing came for 60 s: %d accepted, %d answered of %d", accepted, answered, count);
		for (int i = 0; i < n; i++)
			readable(events[i].data.ptr);
	}
}

int main(int argc, char **argv)
{
	const char *user = NULL, *path = NULL;
	int option;
	while ((option = getopt(argc, argv, "+u:s:n:")) != -1) {
		switch (option) {
		case 'u': user = optarg; break;
		case 's': path = optarg; break;
		case 'n': count = atoi(optarg); break;
		default: return 2;
		}
	}
	if (optind + 1 != argc || !user || !path || count < 1)
		die("usage: waiters -u USER -s SOCKET -n COUNT PROGRAM");
	struct rlimit files;
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	if (files.rlim_max < (rlim_t)count + 16)
		die("the limit of open files is %lu", (unsigned long)files.rlim_max);
	become(user);

	char request[1024], frame[1100];
	int size = snprintf(request, sizeof request,
			    "{\"op\":\"run\",\"program\":\"%s\",\"output\":\"none\"}", argv[optind]);
	memcpy(frame, "DEPLOYER 1\n\1", 12);
	uint8_t length[4] = { 0, 0, size >> 8, size };
	memcpy(frame + 12, length, 4);
	memcpy(frame + 16, request, size);

	struct sockaddr_un address = { .sun_family = AF_UNIX };
	strncpy(address.sun_path, path, sizeof address.sun_path - 1);
	waiters = calloc(count, sizeof *waiters);
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	double began = now();
	for (int i = 0; i < count; i++) {
		struct waiter *w = waiters + i;
		w->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (w->fd < 0 || connect(w->fd, (struct sockaddr *)&address, sizeof address))
			die("connection %d: %s", i, strerror(errno));
		if (send(w->fd, frame, 16 + size, MSG_NOSIGNAL) < 0)
			fprintf(stderr, "waiters: request %d: %s\n", i, strerror(errno));
		struct epoll_event event = { .events = EPOLLIN, .data.ptr = w };
		epoll_ctl(epoll, EPOLL_CTL_ADD, w->fd, &event);
	}
	until_all(epoll, &accepted);
	printf("accepted %d %.3f\n", accepted, now() - began);
	fflush(stdout);
	if (getchar() == EOF)
		return 1;
	began = now();
	until_all(epoll, &answered);
	printf("answered %d %.3f ended %d errors %d lost %d runs %d\n", answered, now() - began, ended, errors,
	       lost, runs);
	return 0;
}
