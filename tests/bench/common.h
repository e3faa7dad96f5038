/* What the programs of the benchmark share: failing, the clock, giving up privileges. */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...)
{
	va_list rest;
	va_start(rest, format);
	fprintf(stderr, "%s: ", program_invocation_short_name);
	vfprintf(stderr, format, rest);
	fputc('\n', stderr);
	exit(2);
}

/* Seconds since some moment in the past. */
static inline double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* Becomes this user for good, without supplementary groups. */
static inline void become(const char *name)
{
	const struct passwd *user = getpwnam(name);
	if (!user)
		die("no such user: %s", name);
	if (setgroups(0, NULL) || setgid(user->pw_gid) || setuid(user->pw_uid))
		die("cannot become %s: %s", name, strerror(errno));
}
