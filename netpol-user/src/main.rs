fn main() -> std::process::ExitCode {
    netpol_user::cli::main()
}
