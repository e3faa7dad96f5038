# The row sources: following remotes, and what an update takes. Sourced by run.
# shellcheck shell=bash disable=SC2154

# Seconds of processor time that the daemon and all its children that have ended took so far.
consumed() {
	local fields
	read -r -a fields < <(sed 's/.*) //' "/proc/$(daemon_pid)/stat")
	calc "printf \"%.2f\", (${fields[11]} + ${fields[12]} + ${fields[13]} + ${fields[14]}) / $(getconf CLK_TCK)"
}

# The most memory that the worker of an update had, in KiB, while $1 is there.
peak() {
	local most=0 now pid
	while [[ -e /proc/$1 ]]; do
		for pid in $(pgrep -f -- '--role=source'); do
			now=$(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$pid/status" 2>/dev/null)
			((${now:-0} > most)) && most=$now
		done
		sleep 0.01
	done
	echo "$most"
}

row_sources() {
	local count=200 minutes=2 n began used
	[[ $quick ]] && count=50 minutes=1
	local place=$dir/sources
	install -d -o "$runner" "$place" "$place/deploy"
	git init -q -b main "$place/app"
	echo one >"$place/app/file"
	git -C "$place/app" add -A
	git -C "$place/app" -c user.name=x -c user.email=x@x commit -q -m one
	python3 - "$place" <<-'END'
		import os, sys, zipfile
		with zipfile.ZipFile(sys.argv[1] + '/app.zip', 'w', zipfile.ZIP_DEFLATED) as z:
		    for n in range(100):
		        z.writestr(f'file{n}', os.urandom(1 << 20))
	END
	configure < <(
		printf '[prog-zip]\nsource = %s/app.zip\ndeploy-dir = %s/deploy/zip\nschedule-update = none\n' "$place" "$place"
		for ((n = 0; n < count; n++)); do
			printf '[prog-s%d]\nsource = %s/app/.git#main\ndeploy-dir = %s/deploy/s%d\n' "$n" "$place" "$place" "$n"
		done
	)
	daemon_start || return
	deployer zip update >&2 &
	result 'update from a zip of 100 MiB: the most memory of its worker' "$(calc "printf \"%.1f MiB\", $(peak $!) / 1024")" '' '' '≤ 64 MiB'
	for ((n = 0; n < count; n++)); do
		deployer "s$n" update >&2 || return
	done
	say "waiting $minutes min"
	# From the middle of a minute on: all looks of one are over by then.
	sleep $((90 - $(date +%-S)))
	began=$(consumed)
	sleep $((60 * minutes))
	used=$(calc "printf \"%.2f\", ($(consumed) - $began) / $minutes")
	result "$count sources without news, looked at every minute" "$used s a minute" 'a core' "$(calc "printf \"%.3f\", $used / 60")" '≤ 0.05'
}
