//! Writes `include/pvlock.h` anew: `cargo run -p pvlock-c-check`.

fn main() -> std::io::Result<()> {
    let file = pvlock_c_check::header_file();
    std::fs::write(&file, pvlock_c_check::header())?;
    println!("{} is up to date", file.display());
    Ok(())
}
