//! Domains that a test in dom0 makes one after another, with `xl` alone.

/// Defines `told`, and `run NAME`: creates the domain of `/guest/NAME.cfg`, waits for its end, and
/// leaves its console and how it ended (`poweroff`, `crash`, `hang`, `not created`) in
/// `/out/NAME.log` and `/out/NAME.end`.
///
/// A script may set `limit`, in fifths of a second, and define `meanwhile NAME`, called as often.
pub(crate) const RUN: &str = r#"
limit=900
# Waits until the console's daemon has written what the domains have told it. It leaves a domain that
# writes much alone for a fifth of a second.
told() {
    sleep 0.3
    until grep -q 'State:.S' /proc/$(pidof xenconsoled)/status; do usleep 20000; done
}
meanwhile() { :; }
run() {
    xl create -q /guest/$1.cfg || { echo "not created" > /out/$1.end; return; }
    i=0
    while [ $i -lt $limit ]; do
        state=$(xl list $1 2>/dev/null | tail -n 1 | grep -o '[-rbpscd]\{6\}')
        case "$state" in
            "") end=poweroff; break;;
            # Shut down in good order (s without c) is on its way out: wait until it is gone.
            ????c?) end=crash; break;;
        esac
        meanwhile $1
        end=hang; i=$((i+1)); sleep 0.2
    done
    told
    xl destroy $1 2>/dev/null
    cp /var/log/xen/guest-$1.log /out/$1.log
    echo $end > /out/$1.end
}
"#;

/// Whether to make a domain: all of them, unless `PVLAB_ONLY` names some (`tests/broken.sh` does).
pub(crate) fn wanted(name: &str) -> bool {
    std::env::var("PVLAB_ONLY").map_or(true, |only| only.split(',').any(|one| one == name))
}
