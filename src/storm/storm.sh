# Carries a storm out in dom0: `storm NAME SECONDS LEAST` performs the operations of
# /guest/NAME.operations on the domain of /guest/NAME.cfg, for so many seconds, but at least so many
# lines of the list. What was done is in /out/NAME.done, a line each: seconds since the domain ran,
# the operation, and behind `count` the acquisitions. An operation that fails ends the storm, with
# the reason in /out/NAME.failed.

# Leaves the seconds since boot in $now. Programs are slow in the emulator: this needs none.
look_at_the_clock() { read -r now _ < /proc/uptime; now=${now%.*}; }
# Waits until domain $1 says that it runs, as another domain than before; leaves its number in
# $domid. A PV domain that was just restored cannot be saved before: it has not told yet where its
# list of frames is.
running() {
    i=0; before=$domid
    while [ $i -lt 600 ]; do
        domid=$(xl domid $1 2>/dev/null) && [ "$domid" != "$before" ] &&
            [ "$(xenstore-read /local/domain/$domid/data/pvlab/state 2>/dev/null)" = running ] && return 0
        i=$((i+1)); sleep 0.2
    done
    echo "the domain does not say that it runs"
    return 1
}
ports() {
    i=0
    while [ $i -lt 300 ]; do
        lsevtchn $domid > /tmp/ports
        [ "$(grep -c "VCPU $1: IPI" /tmp/ports)" = $2 ] && return 0
        i=$((i+1)); sleep 0.2
    done
    cat /tmp/ports
    return 1
}
# Asks the domain how many acquisitions it has made; leaves the number in $acquisitions.
question=0
ask() {
    home=/local/domain/$domid/data/pvlab
    question=$((question+1))
    xenstore-write $home/count $question || return 1
    look_at_the_clock; patience=$((now+600))
    while [ $now -lt $patience ]; do
        answer=$(xenstore-read $home/counted 2>/dev/null)
        [ "${answer% *}" = $question ] && acquisitions=${answer#* } && return 0
        sleep 0.1; look_at_the_clock
    done
    echo "the domain does not say how many acquisitions it has made"
    return 1
}
# Asks until it has made ten acquisitions more than at first.
count() {
    ask || return 1
    first=$acquisitions; look_at_the_clock; end=$((now+600))
    until [ $acquisitions -ge $((first+10)) ]; do
        [ $now -lt $end ] || { echo "the domain makes no more acquisitions, after $acquisitions"; return 1; }
        ask || return 1
    done
}
perform() {
    case $2 in
        pause) xl pause $1 && sleep $3 && xl unpause $1;;
        pin) xl vcpu-pin $1 $3 $4;;
        weight) xl sched-credit2 -d $1 -w $3;;
        cap) xl sched-credit2 -d $1 -c $3;;
        vcpus) xl vcpu-set --ignore-host $1 $3;;
        nmi) xl trigger $1 nmi $3;;
        wait) sleep $3;;
        ports) ports $3 $4;;
        count) count;;
        save-and-restore) xl save $1 /tmp/image && xl restore /tmp/image && running $1;;
        save-and-continue) xl save -c $1 /tmp/image;;
        migrate) xl migrate -s '' $1 'xl migrate-receive' && running $1;;
        reboot) xl reboot $1 && running $1;;
        dump-core) xl dump-core $1 /out/$1.core;;
        *) echo "no such operation"; false;;
    esac
}
# The line $2 of the list for domain $1, and what to write down about it.
step() {
    acquisitions=
    if perform $1 $2 < /dev/null > /tmp/said 2>&1
    then look_at_the_clock; echo "$((now-begun)) $2${acquisitions:+ $acquisitions}" >> /out/$1.done
    else { echo "operation $n ($2) failed:"; cat /tmp/said; } > /out/$1.failed
    fi
    rm -f /tmp/image
}
# What domain $1 has written on its consoles.
consoles() { cat /var/log/xen/guest-$1--incoming.log /var/log/xen/guest-$1.log 2>/dev/null; }
# How often it has come to its last words: the line behind its report, or why there is none.
endings() { consoles $1 | grep -c '^guest'; }
# Waits until it has come to them more than $2 times. They are on their way when the domain has ended;
# one that ended without a word has none.
last_words() {
    look_at_the_clock; patience=$((now+10))
    until [ $(endings $1) -gt $2 ] || [ $now -ge $patience ]; do sleep 0.1; look_at_the_clock; done
}
storm() {
    domid=
    xl create -q /guest/$1.cfg && running $1 || { echo "the domain did not start" > /out/$1.failed; }
    look_at_the_clock; begun=$now; n=0
    : > /out/$1.done
    while [ ! -e /out/$1.failed ] && { [ $((now-begun)) -lt $2 ] || [ $n -lt $3 ]; } && read -r line; do
        n=$((n+1)); echo "@storm $1 $n: $line"
        step $1 "$line"
        look_at_the_clock
    done < /guest/$1.operations
    [ -e /out/$1.failed ] || step $1 count
    before=$(endings $1)
    [ -e /out/$1.failed ] || xl shutdown -w $1 > /tmp/said 2>&1 || cp /tmp/said /out/$1.failed
    last_words $1 $before
    xl vcpu-list > /out/$1.vcpus 2>&1
    xl destroy $1 2>/dev/null
    consoles $1 > /out/$1.log
}
