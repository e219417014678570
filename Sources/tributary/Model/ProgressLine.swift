/// Progress on standard error: one line that is written over on a terminal, a line now and then in a file.

import Glibc

struct ProgressLine {
    private let clock = ContinuousClock()
    private let began: ContinuousClock.Instant
    private var shown: ContinuousClock.Instant?
    private var width = 0
    private let isTerminal = isatty(2) == 1
    private let interval: Duration

    /// - Parameter interval: at least this long between two lines
    init(every interval: Duration = .seconds(2)) {
        began = clock.now
        self.interval = interval
    }

    var seconds: Double { (clock.now - began) / .seconds(1) }

    /// Shows how far the work has come, if it is time and not yet the end: what is being done, a share, and what is left.
    mutating func show(done: Int, of count: Int, _ text: @autoclosure () -> String) {
        let now = clock.now
        guard done < count, now - (shown ?? began) >= interval else { return }
        shown = now
        let share = count > 0 ? Double(done) / Double(count) : 1
        let left = share > 0 ? seconds * (1 - share) / share : 0
        write(text() + (share > 0 ? ", \(duration(left)) left" : ""))
    }

    /// Ends the line, if one stands there.
    mutating func finish() {
        if isTerminal, width > 0 { writeError("\r" + String(repeating: " ", count: width) + "\r") }
        width = 0
    }

    private mutating func write(_ line: String) {
        guard isTerminal else { return writeError(line + "\n") }
        writeError("\r" + line + String(repeating: " ", count: max(0, width - line.count)))
        width = line.count
    }
}

/// 75 as "1 min 15 s".
func duration(_ seconds: Double) -> String {
    let whole = Int(max(0, seconds).rounded())
    if whole < 60 { return "\(whole) s" }
    if whole < 3600 { return "\(whole / 60) min \(whole % 60) s" }
    return "\(whole / 3600) h \(whole % 3600 / 60) min"
}

/// A number with this many digits after the point.
func fixed(_ value: Double, _ digits: Int) -> String {
    guard value.isFinite, abs(value) < 1e15 else { return "\(value)" }
    var scale = 1.0
    for _ in 0..<digits { scale *= 10 }
    let rounded = Int((abs(value) * scale).rounded())
    let sign = value < 0 && rounded != 0 ? "-" : ""
    guard digits > 0 else { return sign + String(rounded) }
    let text = String(rounded)
    let padded = String(repeating: "0", count: max(0, digits + 1 - text.count)) + text
    return sign + padded.dropLast(digits) + "." + padded.suffix(digits)
}

/// 1500000 as "1.5 MB".
func byteText(_ count: Int) -> String {
    var value = Double(count)
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000 { return (unit == "B" ? String(count) : fixed(value, value < 10 ? 2 : 1)) + " " + unit }
        value /= 1000
    }
    return fixed(value, 1) + " TB"
}

func writeError(_ text: String) { writeAll(text, to: 2) }

func writeOutput(_ text: String) { writeAll(text, to: 1) }

/// The peak resident set of this process, mapped pages included.
func peakGiB() -> Double {
    var usage = rusage()
    getrusage(Int32(RUSAGE_SELF.rawValue), &usage)
    return Double(usage.ru_maxrss) / 1_048_576
}

private func writeAll(_ text: String, to descriptor: Int32) {
    let bytes = Array(text.utf8)
    var done = 0
    while done < bytes.count {
        let count = bytes[done...].withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
        if count < 0, errno == EINTR { continue }
        guard count > 0 else { return }
        done += count
    }
}
