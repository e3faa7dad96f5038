# The rows of the benchmark but for kills. Sourced by run.
# shellcheck shell=bash disable=SC2154

# One line of the timer's output: a column of the command with this name (3 is the median).
timed() { awk -v name="$2" -v column="${3:-3}" '$1 == name { print $column }' <<<"$1"; }

row_latency() {
	printf '#!/bin/sh\nexec /bin/true\n' >"$dir/root/true-script" && chmod 755 "$dir/root/true-script"
	ln -sf /bin/true "$dir/root/true-binary"
	cp /bin/true "$dir/root/true-binary.new" && mv "$dir/root/true-binary.new" "$dir/root/true-binary"
	configure <<-END
		[prog-true]
		cmd-run = exec /bin/true
	END
	daemon_start || return
	broker "$dir/broker.socket" "$caller" "$runner" /bin/true &
	local broker=$!
	await test -S "$dir/broker.socket" || return

	local rounds=600 commands=(
		command deployer RUN true
		::: binary deployer RUN true-binary
		::: script deployer RUN true-script
		::: bound client "$dir/broker.socket"
		::: help deployer --version
	)
	[[ $quick ]] && rounds=100
	command -v sudo >/dev/null && commands+=(::: sudo sudo -n -u "$runner" /bin/true) ||
		say "sudo is not installed: not compared"
	command -v doas >/dev/null && commands+=(::: doas doas -n -u "$runner" /bin/true) ||
		say "doas is not installed: not compared"
	local times name what median against
	times=$(timer -u "$caller" -w 50 -n $rounds "${commands[@]}") || return
	echo "$times" >"$dir/results/latency"
	for name in command binary script; do
		case $name in
		command) what='RUN true (cmd-run = exec /bin/true)' ;;
		binary) what='RUN true (/bin/true in the root directory)' ;;
		script) what='RUN true (sh script in the root directory)' ;;
		esac
		median=$(timed "$times" $name)
		while read -r other title target; do
			against=$(timed "$times" "$other")
			[[ $against ]] || continue
			result "$what" "$median µs (least $(timed "$times" $name 2))" \
				"$title $against µs (least $(timed "$times" "$other" 2))" "$(ratio "$median" "$against")" "≤ $target"
		done <<-END
			sudo sudo 0.40
			doas doas 0.60
			bound broker 1.5
		END
	done
	result 'deployer --version (the client starts)' "$(timed "$times" help) µs" '' '' ''
	times=$(timer -p -u "$caller" -w 20 -n $((rounds / 4)) command deployer RUN true) || return
	result 'RUN true, stdin a pipe' "$(timed "$times" command) µs" '' '' ''
	note "latency: timer -u $caller -w 50 -n $rounds ${commands[*]//$dir\//}"
	say "least, median, 90 %, 99 %, mean in µs:"
	column -t "$dir/results/latency" >&2 2>/dev/null || cat "$dir/results/latency" >&2
	kill $broker
	result 'memory after these runs' "$(pss) KiB" '' '' ''
}

row_rate() {
	local seconds=5 clients answer good bad took sudo_rate=() rate one
	[[ $quick ]] && seconds=2
	configure < <(for n in {0..63}; do printf '[prog-t%d]\ncmd-run = exec /bin/true\n' "$n"; done)
	daemon_start || return
	for clients in 1 8 64; do
		if command -v sudo >/dev/null; then
			read -r good bad took < <(load -u "$caller" -c $clients -d $seconds sudo -n -u "$runner" /bin/true)
			sudo_rate[clients]=$(calc "printf \"%.0f\", $good / $took")
		fi
		for one in @ 0; do
			[[ $clients$one == 10 ]] && continue
			answer=$(load -u "$caller" -c $clients -d $seconds deployer RUN "t$one") || return
			read -r good bad took <<<"$answer"
			((bad == 0)) || say "$bad RUNs failed with $clients clients"
			rate=$(calc "printf \"%.0f\", $good / $took")
			local what="RUNs/s, $clients client(s)"
			[[ $one == @ ]] && what+=', a program each' || what+=', one program'
			result "$what" "$rate/s" "${sudo_rate[clients]:+sudo ${sudo_rate[clients]}/s}" \
				"${sudo_rate[clients]:+$(ratio "$rate" "${sudo_rate[clients]}")}" ''
		done
	done
	note "rate: load -u $caller -c CLIENTS -d $seconds deployer RUN t@ (a program each) or t0 (one program)"
}

row_output() {
	local size=1G bytes=1073741824 rounds=5 answer plain logged
	[[ $quick ]] && rounds=2
	configure <<-END
		log-max-size = 2GiB
		log-keep = 1
		[prog-gig]
		cmd-run = exec head -c $size /dev/zero
	END
	daemon_start || return
	answer=$(as_caller deployer RUN gig | wc -c)
	[[ $answer == "$bytes" ]] || say "output: $answer bytes arrived of $bytes"
	# What the same costs with a file, whoever writes it; on a virtual machine it may be the memory
	# that the file is the first to use that takes the time.
	local tee="rm -f $dir/tee/file; head -c $size /dev/zero | tee $dir/tee/file | cat >/dev/null"
	local pipe="head -c $size /dev/zero | cat >/dev/null" run='set -o pipefail; deployer RUN gig | cat >/dev/null'
	install -d -m 777 "$dir/tee"
	answer=$(timer -u "$caller" -w 3 -n $rounds pipe bash -c "$pipe" ::: run bash -c "$run" ::: tee bash -c "$tee" \
		::: null bash -c 'exec deployer RUN gig >/dev/null') || return
	plain=$(timed "$answer" pipe) logged=$(timed "$answer" run)
	rate() { calc "printf \"%.2f GiB/s\", 1e6 / $1"; }
	result '1 GiB of output through RUN, logged, to a pipe' "$(rate "$logged")" "pipe $(rate "$plain")" \
		"$(ratio "$plain" "$logged")" '≥ 0.33'
	plain=$(timed "$answer" tee)
	result '1 GiB of output through RUN, logged, to a pipe' "$(rate "$logged")" "tee to a file $(rate "$plain")" \
		"$(ratio "$plain" "$logged")" ''
	plain=$(timed "$answer" pipe) logged=$(timed "$answer" null)
	result '1 GiB of output through RUN, logged, to /dev/null' "$(rate "$logged")" "pipe $(rate "$plain")" \
		"$(ratio "$plain" "$logged")" ''
	note "output: timer -u $caller -w 3 -n $rounds … bash -c '$pipe' ::: … bash -c 'deployer RUN gig | cat >/dev/null'"
}

# Whether the newest run of a program is live.
runs() { deployer HISTORY "$1" --json | grep -q '"outcome":"running"'; }

row_waiters() {
	local count=10000 before after seconds rest
	[[ $quick ]] && count=2000
	mkfifo -m 666 "$dir/gate"
	configure <<-END
		clients-per-user = $((count + 100))
		[prog-gate]
		cmd-run = test -e $dir/opened || read line < $dir/gate
		history-keep = $((count * 2))
	END
	daemon_start || return
	as_caller deployer RUN gate --detach >/dev/null && await runs gate || return
	before=$(pss)
	coproc WAITERS { waiters -u "$caller" -s "$socket" -n $count gate; }
	local in=${WAITERS[1]} out=${WAITERS[0]}
	read -r -u "$out" _ _ seconds || return
	result "$count clients wait for one program: accepted in" "$seconds s" '' '' ''
	after=$(pss)
	result "memory per waiter (PSS of keeper and daemon)" \
		"$(calc "printf \"%.2f KiB\", ($after - $before) / $count")" "$before → $after KiB" '' '≤ 16 KiB'
	echo go >&"$in"
	touch "$dir/opened"
	echo >"$dir/gate"
	read -r -u "$out" _ _ seconds rest || return
	result "all answered in ($rest)" "$seconds s" '' '' ''
	result 'runs that answered them' \
		"$(($(deployer HISTORY gate --json | grep -c '"outcome":"succeeded"') - 1))" '' '' '1'
	note "waiters: waiters -u $caller -s SOCKET -n $count gate; then HISTORY gate --json"
}

row_memory() {
	local idle many size
	configure <<-END
		[prog-p1]
		cmd-run = exec /bin/true
	END
	daemon_start || return
	sleep 1
	idle=$(pss)
	result 'memory, idle (PSS of keeper and daemon, 1 program)' "$idle KiB" '' '' '≤ 10000 KiB'
	daemon_stop
	configure < <(for n in {1..1000}; do printf '[prog-p%d]\ncmd-run = exec /bin/true\n' "$n"; done)
	daemon_start || return
	sleep 1
	many=$(pss)
	result 'memory per program (1000 configured)' "$(calc "printf \"%.2f KiB\", ($many - $idle) / 999")" \
		"$idle → $many KiB" '' ''
	size=$(stat -c %s "$dir/bin/deployer")
	result 'release binary' "$(calc "printf \"%.2f MB\", $size / 1e6")" '' '' '≤ 8 MB'
	note 'memory: sum of Pss in /proc/PID/smaps_rollup of keeper and daemon, 1 s after the start'
}
