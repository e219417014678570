/// Progress on standard error: one line that is written over on a terminal, a line now and then in a file.

import Primitives

public struct ProgressLine {
    private let clock = ContinuousClock()
    private let began: ContinuousClock.Instant
    private var shown: ContinuousClock.Instant
    private let isTerminal = Console.isTerminal
    private let interval: Duration

    /// - Parameter interval: at least this long between two lines of a file; a terminal's line changes more often
    public init(every interval: Duration = .seconds(2)) {
        began = clock.now
        shown = began
        self.interval = isTerminal ? .milliseconds(200) : interval
    }

    public var seconds: Double { (clock.now - began) / .seconds(1) }

    /// Shows how far the work has come, if it is time and not yet the end.
    ///
    /// - Parameters:
    ///   - unit: what is counted, for the rate: "examples"; nil if the text says how fast it goes
    ///   - text: what is being done, and how much of it is
    public mutating func show(done: Int, of count: Int, unit: String? = nil, _ text: @autoclosure () -> String) {
        let now = clock.now
        guard done < count, isTime(now) else { return }
        var line = text()
        if done > 0 {
            let passed = (now - began) / .seconds(1)
            if let unit {
                let rate = Double(done) / passed
                line += ", \(Readable.decimal(rate, rate < 10 ? 1 : 0)) \(unit)/s"
            }
            line += ", \(Readable.duration(seconds: passed * Double(count - done) / Double(done))) left"
        }
        write(line)
    }

    /// Shows the text, if it is time.
    public mutating func show(_ text: @autoclosure () -> String) {
        guard isTime(clock.now) else { return }
        write(text())
    }

    /// Removes the line from a terminal.
    public func finish() { if isTerminal { Console.progress("") } }

    private mutating func isTime(_ now: ContinuousClock.Instant) -> Bool {
        guard now - shown >= interval else { return false }
        shown = now
        return true
    }

    private func write(_ line: String) { isTerminal ? Console.progress(line) : Console.error(line) }
}
