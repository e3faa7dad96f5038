# The row services: long-running programs, beside supervisord and runit. Sourced by run.
# shellcheck shell=bash disable=SC2154

sleepers() { pgrep -c -x sleep; }
all_up() { (($(sleepers) == count)); }
at_least_nine() { (($(sleepers) >= 9)); }
none_up() { (($(sleepers) == 0)); }

# Sets `took` to the seconds until all programs run, from the command that starts them.
cold() {
	local began=$EPOCHREALTIME
	"$@" >&2 || return
	await all_up || return
	took=$(calc "printf \"%.2f\", $EPOCHREALTIME - $began")
}

row_services() {
	local count=1000 rounds=15 n began times ours theirs took runit=
	[[ $quick ]] && count=200 rounds=5
	ulimit -n 20000
	configure < <(
		printf 'stop-timeout = 1\n'
		for ((n = 0; n < count; n++)); do
			printf '[prog-s%d]\ncmd-start = exec sleep 100000\nautostart = yes\n' "$n"
		done
	)
	cold daemon_start || return
	ours=$took
	result "$count programs started from cold" "$ours s" '' '' ''
	result '  memory per program (PSS of keeper and daemon)' "$(calc "printf \"%.1f KiB\", $(pss) / $count")" '' '' '≤ 20 KiB'
	daemon_stop && await none_up || return

	local place=$dir/others
	mkdir -p "$place/sv"
	if command -v supervisord >/dev/null; then
		{
			printf '[supervisord]\nlogfile=%s/log\npidfile=%s/pid\nchildlogdir=%s\nminfds=20000\n' "$place" "$place" "$place"
			for ((n = 0; n < count; n++)); do
				printf '[program:s%d]\ncommand=sleep 100000\nuser=%s\n' "$n" "$runner"
			done
		} >"$place/supervisord.conf"
		cold supervisord -c "$place/supervisord.conf" || return
		theirs=$took
		result "  the same" "$ours s" "supervisord $theirs s" "$(ratio "$ours" "$theirs")" '≤ 0.33'
		kill "$(<"$place/pid")"
		await none_up || return
	fi
	if command -v runsvdir >/dev/null; then
		for ((n = 0; n < count; n++)); do
			mkdir "$place/sv/s$n"
			printf '#!/bin/sh\nexec chpst -u %s sleep 100000\n' "$runner" >"$place/sv/s$n/run"
			chmod 755 "$place/sv/s$n/run"
		done
		cold start_runit || return
		theirs=$took
		result "  the same" "$ours s" "runsvdir $theirs s" "$(ratio "$ours" "$theirs")" '≤ 1.5'
		stop_runit || return
	fi

	# A program says when it begins; then it is killed, and says so again.
	printf '#!/bin/sh\necho $$ $(date +%%s%%N) >%s/began.new\nmv %s/began.new %s/began\nexec sleep 100000\n' \
		"$place" "$place" "$place" >"$place/program"
	chmod 755 "$place/program"
	install -d -m 777 "$place/sv/crash"
	chmod 777 "$place"
	configure <<-END
		stop-timeout = 1
		[prog-crash]
		cmd-start = exec $place/program
		restart = always
		restart-delay = 0.001
		[prog-tree]
		cmd-start = trap '' TERM; for n in 1 2 3 4; do (trap '' TERM; setsid sh -c "trap '' TERM; sleep 100000 & sleep 100000") & done; sleep 100000
	END
	daemon_start || return
	deployer crash start
	times=$(crashes) || return
	ours=$(median <<<"$times")
	deployer crash stop
	result 'killed to started again, without the delay' "$(calc "printf \"%.2f ms\", $ours - 1")" '' '' ''
	local ended
	deployer tree start
	await at_least_nine || return
	began=$EPOCHREALTIME
	deployer tree stop 2>/dev/null
	ended=$EPOCHREALTIME
	result 'stop of a tree that ignores TERM, beyond stop-timeout' "$(calc "printf \"%.2f s\", $ended - $began - 1")" '' '' '≤ 0.2 s'
	result '  processes left' "$(sleepers)" '' '' 0
	daemon_stop || return
	if command -v runsvdir >/dev/null; then
		rm -rf "$place/sv" && mkdir -p "$place/sv/crash"
		printf '#!/bin/sh\nexec chpst -u %s %s/program\n' "$runner" "$place" >"$place/sv/crash/run"
		chmod 755 "$place/sv/crash/run"
		rm -f "$place/began"
		start_runit
		times=$(crashes) || return
		theirs=$(median <<<"$times")
		result '  the same' "$(calc "printf \"%.2f ms\", $ours - 1")" "runit $(calc "printf \"%.2f ms\", $theirs")" \
			"$(calc "printf \"%.2f\", ($ours - 1) / $theirs")" '≤ 1'
		stop_runit || return
	fi
	note "services: $count programs that sleep; $rounds times kill -9 of a program that writes down when it begins"
}

start_runit() { runsvdir "$place/sv" >/dev/null 2>&1 & runit=$!; }

stop_runit() {
	kill -HUP "$runit"
	await none_up
}

median() { sort -n | awk '{ a[NR] = $1 } END { print a[int((NR + 1) / 2)] }'; }

# Milliseconds from each kill to the next beginning. Runit waits for a second unless the program
# has been up for one.
crashes() {
	local n old pid began killed tick
	exec {tick}<> <(:)
	await test -s "$place/began" || return
	for ((n = 0; n < rounds; n++)); do
		read -r -t 1.3 -u "$tick"
		read -r old began <"$place/began"
		killed=${EPOCHREALTIME/./}
		kill -9 "$old"
		until read -r pid began <"$place/began" && [[ $pid != "$old" ]]; do read -r -t 0.005 -u "$tick"; done
		calc "printf \"%.3f\\n\", ($began / 1000 - $killed) / 1000"
	done
	exec {tick}<&-
}
