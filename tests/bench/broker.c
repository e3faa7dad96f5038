/* The lower bound: the least that a broker has to do for somebody who asks.
 *
 *   broker SOCKET CALLER USER PROGRAM [ARG...]
 *
 * Accepts, reads the peer's uid from the kernel, refuses all but CALLER, vforks, becomes USER,
 * executes PROGRAM, waits and answers with its wait status. It records, logs and limits
 * nothing, and serves one client at a time. */
#include "common.h"
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

int main(int argc, char **argv)
{
	if (argc < 5)
		die("usage: broker SOCKET CALLER USER PROGRAM [ARG...]");
	const struct passwd *entry = getpwnam(argv[2]);
	if (!entry)
		die("no such user: %s", argv[2]);
	uid_t caller = entry->pw_uid;
	if (!(entry = getpwnam(argv[3])))
		die("no such user: %s", argv[3]);
	uid_t uid = entry->pw_uid;
	gid_t gid = entry->pw_gid;

	struct sockaddr_un address = { .sun_family = AF_UNIX };
	if (strlen(argv[1]) >= sizeof address.sun_path)
		die("the path of the socket is too long");
	strcpy(address.sun_path, argv[1]);
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address)
	    || chmod(argv[1], 0666) || listen(listener, 128))
		die("cannot listen at %s: %s", argv[1], strerror(errno));

	for (;;) {
		int peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (peer < 0)
			continue;
		struct ucred who;
		socklen_t size = sizeof who;
		char request[64];
		int status = 125 << 8;
		if (!getsockopt(peer, SOL_SOCKET, SO_PEERCRED, &who, &size) && who.uid == caller
		    && read(peer, request, sizeof request) > 0) {
			pid_t child = vfork();
			if (child == 0) {
				if (!setgroups(0, NULL) && !setgid(gid) && !setuid(uid))
					execv(argv[4], argv + 4);
				_exit(127);
			}
			if (child > 0)
				waitpid(child, &status, 0);
		}
		if (write(peer, &status, sizeof status) < 0)
			perror("broker: answer");
		close(peer);
	}
}
