/// What a sequence length does to a data set, for people.

import Datasets
import Programs

/// What was cut, divided and left out while a data set was read; nil if nothing was.
func dataNotes(cut: Int, divided: Int, dropped: Int, sequenceLength: Int) -> String? {
    func examples(_ count: Int) -> String { count == 1 ? "1 example was" : "\(count) examples were" }
    var notes: [String] = []
    if cut > 0 { notes.append("\(examples(cut)) cut to \(sequenceLength) tokens") }
    if divided > 0 { notes.append("\(examples(divided)) divided into parts of up to \(sequenceLength) tokens") }
    if dropped > 0 { notes.append("\(examples(dropped)) left out, as no target remained within \(sequenceLength) tokens") }
    return notes.isEmpty ? nil : notes.joined(separator: "; ")
}

/// How well bins of tokens are filled; nil if nothing is packed.
func packingNote(examples: Int, bins: Int, tokens: Int, sequenceLength: Int) -> String? {
    guard bins > 0 else { return nil }
    let share = 100 * Double(tokens) / Double(bins * sequenceLength)
    return
        "\(examples) sequence\(examples == 1 ? "" : "s") packed into \(bins) bin\(bins == 1 ? "" : "s") of \(sequenceLength) tokens, \(Readable.decimal(share, 1)) % full"
}

func dataNotes(_ data: EncodedData, sequenceLength: Int) -> String? {
    dataNotes(
        cut: data.cutCount, divided: data.dividedCount, dropped: data.droppedCount, sequenceLength: sequenceLength)
}
