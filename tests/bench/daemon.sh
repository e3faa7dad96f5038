# Starting, stopping and looking at a private daemon; the table. Sourced by run.
# shellcheck shell=bash disable=SC2154

daemon_count=0

# Writes /etc/deployer.cfg: the globals every row shares, then what comes on stdin, with further
# globals (if any) before the first section.
configure() {
	state=$dir/daemon-$((++daemon_count))
	socket=$state/socket
	mkdir -m 755 "$state" "$state/state" "$state/log"
	{
		cat <<-END
			socket-path = $socket
			state-dir = $state/state
			log-dir = $state/log
			root = $dir/root
			allow-uid = $caller
			user = $runner
		END
		cat
	} >/etc/deployer.cfg
}

# With the level to log at.
daemon_start() {
	deployer -d -P "$state/pid" -l "$state/daemon.log" -L "${1:-warning}" ||
		{ say "the daemon does not start: $(tail -n 5 "$state/daemon.log" 2>/dev/null)" && return 1; }
	keeper=$(<"$state/pid")
}

daemon_stop() {
	[[ ${keeper:-} ]] || return 0
	deployer -s >&2
	local until=$((SECONDS + 20))
	while [[ -e /proc/$keeper ]] && ((SECONDS < until)); do sleep 0.05; done
	if [[ -e /proc/$keeper ]]; then
		say "the keeper did not stop within 20 s; killed"
		kill -9 "$(daemon_pid)" "$keeper"
	fi
	[[ $keep ]] || rm -rf "$state"
	keeper=
}

# The daemon: the one child of the keeper that executes the same file under the same name. (What
# a killed daemon leaves to the keeper are programs.)
daemon_pid() {
	local child children
	read -r children <"/proc/$keeper/task/$keeper/children" || [[ $children ]] || return 1
	for child in $children; do
		[[ /proc/$child/exe -ef $dir/bin/deployer ]] && echo "$child" && return 0
	done
	return 1
}

# Proportional memory of keeper and daemon, in KiB.
pss() {
	awk '/^Pss:/ { sum += $2 } END { print sum }' "/proc/$keeper/smaps_rollup" \
		"/proc/$(daemon_pid)/smaps_rollup"
}

# As the caller of the programs.
as_caller() { setpriv --reuid="$caller" --regid="$caller" --clear-groups -- "$@"; }

# Waits until a command succeeds, 60 s at most.
await() {
	local until=$((SECONDS + 60))
	until "$@"; do
		((SECONDS < until)) || { say "waited in vain for: $*" && return 1; }
		sleep 0.02
	done
}

# Results are kept as "ROW|MEASURED|AGAINST|RATIO|TARGET"; notes stand below the table.
result() { (IFS='|' && printf '%s\n' "$*") >>"$dir/results/rows"; }
note() { printf '%s\n' "$*" >>"$dir/results/notes"; }
calc() { awk "BEGIN { $1 }"; }
ratio() { calc "printf \"%.2f\", $1 / $2"; }

table() {
	local all=$dir/results/rows
	[[ -s $all ]] || { say "there are no results" && return 1; }
	{ echo 'what|measured|against|ratio|target' && cat "$all"; } | awk -F'|' '
		{
			for (i = 1; i <= 5; i++) {
				cell[NR, i] = $i
				if (length($i) > width[i]) width[i] = length($i)
			}
		}
		END {
			for (r = 1; r <= NR; r++) {
				line = ""
				for (i = 1; i <= 5; i++) line = line sprintf("%-" width[i] + 2 "s", cell[r, i])
				sub(/ +$/, "", line)
				print line
				if (r == 1) { gsub(/./, "-", line); print line }
			}
		}'
	[[ -s $dir/results/notes ]] && printf '\nMade by:\n' && cat "$dir/results/notes"
}
