/// What a program writes: JSON lines on standard output, log lines and progress on standard error.

import FoundationEssentials
import Glibc
import Logging
import Primitives
import Synchronization

public enum Console {
    /// The width of the progress that stands in the terminal's last line, to be erased before anything else is written.
    private static let progressWidth = Mutex(0)

    /// Why standard output took no more, or 0.
    private static let outputProblem = Mutex(Int32(0))

    /// One object on one line of standard output, at once.
    public static func json(_ value: JSONValue) { text(value.compact + "\n") }

    /// A line of standard output.
    public static func line(_ text: String) { Self.text(text + "\n") }

    /// A part of standard output, at once.
    public static func text(_ text: String) {
        progressWidth.withLock { width in
            let clear = erase(&width)
            if !clear.isEmpty { write(clear, to: STDERR_FILENO) }
            write(text, to: STDOUT_FILENO)
        }
    }

    /// What was lost of standard output, if it leads to a full disk or the like; a reader that went away is no loss.
    static var lostOutput: Failure? {
        let code = outputProblem.withLock { $0 }
        guard code != 0, code != EPIPE else { return nil }
        return Failure(
            .ioError,
            "standard output cannot be written: \(String(cString: strerror(code))); free some space, or send it elsewhere")
    }

    /// A line of standard error, or several; what else in it could command a terminal is shown as an escape.
    public static func error(_ text: String) {
        progressWidth.withLock { width in
            write(erase(&width) + Readable.withoutControls(text, exceptLines: true) + "\n", to: STDERR_FILENO)
        }
    }

    /// Whether standard error is a terminal, so that a line can be rewritten in place.
    public static var isTerminal: Bool { isatty(STDERR_FILENO) == 1 }

    /// Replaces the progress in the terminal's last line; "" removes it. Call it only if `isTerminal`.
    public static func progress(_ text: String) {
        progressWidth.withLock { width in
            let clear = erase(&width)
            width = text.count
            write(clear + text, to: STDERR_FILENO)
        }
    }

    private static func erase(_ width: inout Int) -> String {
        defer { width = 0 }
        return width == 0 ? "" : "\r\u{1B}[K"
    }

    private static func write(_ text: String, to descriptor: Int32) {
        var bytes = Array(text.utf8)[...]
        while !bytes.isEmpty {
            let count = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
            if count < 0 {
                if errno == EINTR { continue }
                if descriptor == STDOUT_FILENO { outputProblem.withLock { $0 = errno } }
                return
            }
            bytes.removeFirst(count)
        }
    }

    /// A logger whose lines are `12:34:56 message` on standard error; call it once, at the program's start.
    public static func makeLogger(_ label: String) -> Logger {
        LoggingSystem.bootstrap { _ in LineHandler() }
        return Logger(label: label)
    }
}

/// Writes each event as one line: the local time, the level where it is a warning or worse, the message.
private struct LineHandler: LogHandler {
    var metadata: Logger.Metadata = [:]
    var logLevel: Logger.Level = .info

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        var seconds = time(nil)
        var parts = tm()
        localtime_r(&seconds, &parts)
        func two(_ value: Int32) -> String { value < 10 ? "0\(value)" : "\(value)" }
        let level = event.level >= .warning ? "\(event.level): " : ""
        let message = Readable.withoutControls(event.message.description)
        Console.error("\(two(parts.tm_hour)):\(two(parts.tm_min)):\(two(parts.tm_sec)) \(level)\(message)")
    }
}

/// Numbers and texts as people read them.
public enum Readable {
    /// With control characters as `\u{1b}`: texts come from files and peers, and a terminal obeys some of them.
    public static func withoutControls(_ text: String, exceptLines: Bool = false) -> String {
        func isControl(_ scalar: Unicode.Scalar) -> Bool {
            scalar.properties.generalCategory == .control && !(exceptLines && scalar == "\n")
        }
        guard text.unicodeScalars.contains(where: isControl) else { return text }
        var shown = ""
        for scalar in text.unicodeScalars {
            if isControl(scalar) {
                shown += "\\u{\(String(scalar.value, radix: 16))}"
            } else {
                shown.unicodeScalars.append(scalar)
            }
        }
        return shown
    }

    /// `17.3 MB`: powers of 1000, three significant digits or so.
    public static func bytes(_ count: Int) -> String {
        let units = ["bytes", "kB", "MB", "GB", "TB"]
        var value = Double(count)
        var unit = 0
        while value >= 999.5, unit < units.count - 1 {
            value /= 1000
            unit += 1
        }
        return unit == 0 ? "\(count) bytes" : "\(decimal(value, value < 10 ? 2 : value < 100 ? 1 : 0)) \(units[unit])"
    }

    /// `12 s`, `3 min 20 s`, `2 h 5 min`
    public static func duration(seconds: Double) -> String {
        guard seconds.isFinite, seconds >= 0, seconds < 1e9 else { return "unknown" }
        if seconds < 9.95 { return "\(decimal(seconds, 1)) s" }
        let whole = Int(seconds.rounded())
        if whole < 60 { return "\(whole) s" }
        if whole < 3600 { return "\(whole / 60) min \(whole % 60) s" }
        return "\(whole / 3600) h \(whole % 3600 / 60) min"
    }

    /// With this many digits after the point, rounded.
    public static func decimal(_ value: Double, _ digits: Int) -> String {
        guard value.isFinite, abs(value) < 1e12 else { return "\(value)" }
        let scale = (0..<digits).reduce(1) { product, _ in product * 10 }
        let scaled = Int((abs(value) * Double(scale)).rounded())
        let fraction = String(scaled % scale)
        let sign = value < 0 && scaled > 0 ? "-" : ""
        guard digits > 0 else { return "\(sign)\(scaled)" }
        return "\(sign)\(scaled / scale).\(String(repeating: "0", count: digits - fraction.count))\(fraction)"
    }
}
