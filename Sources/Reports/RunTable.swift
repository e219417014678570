/// The table of runs, for a page and as Markdown.

import Primitives

public enum RunTable {
    private struct Column: Sendable {
        let title: String
        let isNumber: Bool
        /// Left out of the page where no run has anything to say.
        var isOptional = false
        let cell: @Sendable (_ row: Row) -> String
    }

    /// One run, or several that differ in their seeds alone.
    private struct Row: Sendable {
        let number: Int
        let members: [RunSummary]
        let reference: Double?
        let fewerBytes: Double?

        var first: RunSummary { members[0] }
        var losses: [Double] { members.compactMap(\.finalLoss) }

        func mean(_ value: (RunSummary) -> Double?) -> Double? {
            let values = members.compactMap(value)
            return values.count == members.count ? values.reduce(0, +) / Double(values.count) : nil
        }
    }

    // MARK: - In the page

    /// Every run in a row of its own.
    static func html(_ summaries: [RunSummary]) -> String {
        func cell(_ name: String, _ column: Column, _ text: String) -> String {
            "<\(name)\(column.isNumber ? " class=\"right\"" : "")>\(NumberText.escaped(text))</\(name)>"
        }
        let rows = rows(summaries, poolingSeeds: false)
        let columns = pageColumns.filter { column in
            !column.isOptional || rows.contains { column.cell($0) != NumberText.missing }
        }
        let head = columns.map { cell("th", $0, $0.title) }.joined()
        let body = rows.map { row in
            "<tr>" + columns.map { cell("td", $0, $0.cell(row)) }.joined() + "</tr>"
        }
        return """
            <div class="scroll">
            <table>
            <thead><tr>\(head)</tr></thead>
            <tbody>
            \(body.joined(separator: "\n"))
            </tbody>
            </table>
            </div>
            """
    }

    private static let pageColumns: [Column] = [
        .init(title: "#", isNumber: true) { "\($0.number)" },
        .init(title: "run", isNumber: false) { $0.first.run.label },
        .init(title: "strategy", isNumber: false) { $0.first.run.strategy },
        .init(title: "compress", isNumber: false) { $0.first.run.compress },
        .init(title: "error feedback", isNumber: false) { $0.first.run.errorFeedback ? "yes" : "no" },
        .init(title: "dp", isNumber: false) { $0.first.run.privacy?.level ?? "none" },
        .init(title: "epsilon", isNumber: true) { NumberText.plain($0.first.run.privacy?.epsilon.map(rounded)) },
        .init(title: "delta", isNumber: true) { NumberText.plain($0.first.run.privacy?.delta) },
        .init(title: "guarantee", isNumber: false) { $0.first.run.privacy?.guarantee ?? NumberText.missing },
        .init(title: "rounds", isNumber: true) { row in
            let run = row.first.run
            let planned = run.plannedRounds.map { $0 == run.rounds.count ? "" : " of \($0)" } ?? ""
            return "\(run.rounds.count)\(planned)"
        },
        .init(title: "first eval loss", isNumber: true) { NumberText.loss($0.first.run.initialLoss) },
        .init(title: "final eval loss", isNumber: true) { row in
            let summary = row.first
            // An evaluation that is not of the last round says of which it is.
            let round = summary.finalLossRound.map { $0 == summary.run.rounds.last?.round ? "" : " (round \($0))" } ?? ""
            return NumberText.loss(summary.finalLoss) + round
        },
        .init(title: "accuracy", isNumber: true, isOptional: true) { NumberText.share($0.first.finalAccuracy) },
        .init(title: "macro F1", isNumber: true, isOptional: true) { NumberText.share($0.first.finalMacroF1) },
        .init(title: "contribution bytes a round", isNumber: true) { NumberText.bytes($0.first.uplinkBytesPerRound) },
        .init(title: "each client's", isNumber: true) { NumberText.bytes($0.first.uplinkBytesPerContribution) },
        .init(title: "up: times fewer than bf16", isNumber: true) { NumberText.factor($0.first.uplinkRatios.bfloat16) },
        .init(title: "than f32", isNumber: true) { NumberText.factor($0.first.uplinkRatios.float32) },
        .init(title: "down: times fewer than bf16", isNumber: true) { NumberText.factor($0.first.downlinkRatios.bfloat16) },
        .init(title: "than f32", isNumber: true) { NumberText.factor($0.first.downlinkRatios.float32) },
        .init(title: "one-time bytes", isNumber: true) { NumberText.bytes($0.first.oneTimeBytes) },
        .init(title: "seconds", isNumber: true) { $0.first.seconds.map { NumberText.decimal($0, 1) } ?? NumberText.missing },
    ]

    // MARK: - As Markdown

    /// A table that stands in a Markdown page.
    ///
    /// A column in which no run has anything to say is left out. Where a run of the same strategy, seed and privacy with
    /// bf16 and without error feedback is among the runs, others are compared with it.
    ///
    /// - Parameter poolingSeeds: whether runs that differ in the seed alone are one row, with the mean and the range
    public static func markdown(_ summaries: [RunSummary], poolingSeeds: Bool = false) -> String {
        let rows = rows(summaries, poolingSeeds: poolingSeeds)
        let cells = markdownColumns(isPooled: poolingSeeds).map { column in (column, rows.map(column.cell)) }
            .filter { _, cells in cells.contains { $0 != NumberText.missing } }
        var lines = [
            "| " + cells.map(\.0.title).joined(separator: " | ") + " |",
            "|" + cells.map { $0.0.isNumber ? "---:|" : "---|" }.joined(),
        ]
        for index in rows.indices {
            lines.append("| " + cells.map { NumberText.markdown($0.1[index]) }.joined(separator: " | ") + " |")
        }
        return lines.joined(separator: "\n") + "\n"
    }

    private static func markdownColumns(isPooled: Bool) -> [Column] {
        [
            .init(title: "run", isNumber: false) { isPooled ? NumberText.missing : $0.first.run.label },
            .init(title: "strategy", isNumber: false) { $0.first.run.strategy },
            .init(title: "codec", isNumber: false) { $0.first.run.compress },
            .init(title: "error feedback", isNumber: false) { $0.first.run.errorFeedback ? "yes" : NumberText.missing },
            .init(title: "dp", isNumber: false) { $0.first.run.privacy?.level ?? NumberText.missing },
            .init(title: "epsilon", isNumber: true) { NumberText.plain($0.first.run.privacy?.epsilon.map(rounded)) },
            .init(title: "delta", isNumber: true) { NumberText.plain($0.first.run.privacy?.delta) },
            .init(title: "rounds", isNumber: true) { "\($0.first.run.rounds.count)" },
            .init(title: "first eval loss", isNumber: true) { NumberText.loss($0.first.run.initialLoss) },
            .init(title: isPooled ? "final eval loss, mean" : "final eval loss", isNumber: true) { row in
                NumberText.loss(row.mean(\.finalLoss))
            },
            .init(title: "range", isNumber: true) { row in
                guard isPooled, let low = row.losses.min(), let high = row.losses.max() else { return NumberText.missing }
                return "\(NumberText.loss(low)) to \(NumberText.loss(high))"
            },
            .init(title: isPooled ? "accuracy, mean" : "accuracy", isNumber: true) { NumberText.share($0.mean(\.finalAccuracy)) },
            .init(title: isPooled ? "macro F1, mean" : "macro F1", isNumber: true) { NumberText.share($0.mean(\.finalMacroF1)) },
            .init(title: "seeds", isNumber: true) { isPooled ? "\($0.members.count)" : NumberText.missing },
            .init(title: "% of bf16's loss", isNumber: true) { row in
                row.reference.map { NumberText.decimal($0 * 100, 2) } ?? NumberText.missing
            },
            .init(title: "contribution bytes, each client and round", isNumber: true) { row in
                row.mean(\.uplinkBytesPerContribution).map { NumberText.decimal($0, 0) } ?? NumberText.missing
            },
            .init(title: "times fewer than the bf16 run's", isNumber: true) { NumberText.factor($0.fewerBytes) },
        ]
    }

    private static func rows(_ summaries: [RunSummary], poolingSeeds: Bool) -> [Row] {
        var groups: [[RunSummary]] = []
        for summary in summaries {
            if poolingSeeds, let index = groups.firstIndex(where: { $0[0].run.kind == summary.run.kind }) {
                groups[index].append(summary)
            } else {
                groups.append([summary])
            }
        }
        return groups.enumerated().map { index, group in
            let references = group.map { $0.reference(among: summaries) }
            func mean(_ values: [Double?]) -> Double? {
                let known = values.compactMap { $0 }
                return known.count == values.count ? known.reduce(0, +) / Double(known.count) : nil
            }
            return Row(
                number: index + 1, members: group,
                reference: mean(zip(group, references).map { RunSummary.quotient($0.finalLoss, $1?.finalLoss) }),
                fewerBytes: mean(zip(group, references).map { $0.fewerBytes(than: $1) }))
        }
    }

    /// To four digits after the point.
    private static func rounded(_ value: Double) -> Double {
        abs(value) < 1e12 ? (value * 1e4).rounded() / 1e4 : value
    }
}
