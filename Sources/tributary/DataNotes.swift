/// What a sequence length does to a data set, for people.

import Datasets

/// What was cut and left out while a data set was read; nil if nothing was.
func dataNotes(cut: Int, dropped: Int, sequenceLength: Int) -> String? {
    func examples(_ count: Int) -> String { count == 1 ? "1 example was" : "\(count) examples were" }
    var notes: [String] = []
    if cut > 0 { notes.append("\(examples(cut)) cut to \(sequenceLength) tokens") }
    if dropped > 0 { notes.append("\(examples(dropped)) left out, as no target remained within \(sequenceLength) tokens") }
    return notes.isEmpty ? nil : notes.joined(separator: "; ")
}

func dataNotes(_ data: EncodedData, sequenceLength: Int) -> String? {
    dataNotes(cut: data.cutCount, dropped: data.droppedCount, sequenceLength: sequenceLength)
}
