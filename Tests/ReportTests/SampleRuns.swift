/// Runs as their folders hold them, made up.

import Reports
import Testing

enum SampleRuns {
    /// One line of `metrics.jsonl`.
    static func line(
        _ round: Int, loss: String = "2.5", trainLoss: String = "2.75", uplink: Int = 1000, ratio: String = "4", more: String = ""
    ) -> String {
        "{\"round\":\(round),\"participants\":[\"a\",\"b\"],\"train_loss\":\(trainLoss),\"eval_loss\":\(loss),\"uplink_bytes\":\(uplink),"
            + "\"downlink_bytes\":500,\"one_time_bytes\":30,\"control_bytes\":7,\"uplink_ratio_bf16\":\(ratio),\"uplink_ratio_f32\":8,"
            + "\"downlink_ratio_bf16\":null,\"downlink_ratio_f32\":null,\"seconds\":1.5\(more)}\n"
    }

    static func run(
        strategy: String = "fedit", compress: String = "f32", errorFeedback: Bool = false, seed: Int = 0,
        privacy: String = "null",
        initial: String = "4"
    ) -> String {
        "{\"run\":\"r\",\"base_model\":\"m\",\"plan\":{\"strategy\":\"\(strategy)\",\"compress\":\"\(compress)\",\"errorFeedback\":\(errorFeedback),"
            + "\"seed\":\(seed),\"rounds\":3},\"finished\":true,\"rounds_done\":3,\"privacy\":\(privacy),\"initial_eval_loss\":\(initial)}\n"
    }

    static func make(_ label: String, run: String = run(), lines: [String]) throws -> RecordedRun {
        try RecordedRun(label: label, folder: "runs/\(label)", run: Array(run.utf8), metrics: Array(lines.joined().utf8))
    }
}

/// Whether a text is well-formed XML, as far as the report writes it: elements, quoted attributes, references, comments not.
enum Markup {
    /// - Returns: what is wrong first, or nil
    static func problem(_ text: String) -> String? {
        var open: [Substring] = []
        var rest = text[...]
        while let start = rest.firstIndex(of: "<") {
            if let problem = looseText(rest[..<start]) { return problem }
            guard let end = rest[start...].firstIndex(of: ">") else { return "a tag has no end" }
            let tag = rest[rest.index(after: start)..<end]
            rest = rest[rest.index(after: end)...]
            if tag.hasPrefix("!DOCTYPE") { continue }
            if tag.hasPrefix("/") {
                guard open.popLast() == tag.dropFirst() else { return "</\(tag.dropFirst())> closes nothing" }
                continue
            }
            guard
                tag.wholeMatch(of: #/[a-zA-Z][a-zA-Z0-9]*(?:\s+[a-zA-Z-]+="[^"<&]*(?:&(?:amp|lt|gt|quot|#39);[^"<&]*)*")*\/?/#)
                    != nil
            else { return "<\(tag)> is no tag" }
            if !tag.hasSuffix("/") { open.append(tag.prefix { $0 != " " && $0 != "\n" }) }
        }
        if let problem = looseText(rest) { return problem }
        return open.isEmpty ? nil : "<\(open[0])> is not closed"
    }

    private static func looseText(_ text: Substring) -> String? {
        for part in text.split(separator: "&", omittingEmptySubsequences: false).dropFirst()
        where part.prefixMatch(of: #/(?:amp|lt|gt|quot|#39);/#) == nil {
            return "& stands bare before \(part.prefix(10))"
        }
        return nil
    }
}
