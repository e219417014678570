/// The known name that somebody who mistyped one most likely meant.

public enum NearestName {
    /// The nearest of `known` by edit distance (the first of several), or nil if none shares even half of its letters.
    public static func of(_ name: String, among known: [String]) -> String? {
        var best: (name: String, distance: Int)?
        for candidate in known {
            let distance = editDistance(name, candidate)
            if distance < best?.distance ?? Int.max { best = (candidate, distance) }
        }
        guard let best, best.distance <= max(2, max(name.utf8.count, best.name.utf8.count) / 2) else { return nil }
        return best.name
    }

    /// Insertions, deletions and replacements that turn one into the other (Levenshtein 1966), and swaps of neighbours
    /// as one (the restricted Damerau-Levenshtein distance): a swap is the commonest slip.
    public static func editDistance(_ first: String, _ second: String) -> Int {
        let a = Array(first.utf8)
        let b = Array(second.utf8)
        var beforeLast: [Int] = []
        var last = Array(0...b.count)
        for i in a.indices {
            var row = [i + 1]
            for j in b.indices {
                var cost = min(last[j + 1] + 1, row[j] + 1, last[j] + (a[i] == b[j] ? 0 : 1))
                if i > 0, j > 0, a[i] == b[j - 1], a[i - 1] == b[j] { cost = min(cost, beforeLast[j - 1] + 1) }
                row.append(cost)
            }
            beforeLast = last
            last = row
        }
        return last[b.count]
    }
}
