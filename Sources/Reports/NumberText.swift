/// Numbers and labels as a report shows them.

import Glibc

enum NumberText {
    /// What stands for a value that there is not.
    static let missing = "-"

    /// With so many digits after the point, rounded.
    static func decimal(_ value: Double, _ digits: Int) -> String {
        guard value.isFinite, abs(value) < 1e12 else { return "\(value)" }
        let scale = (0..<digits).reduce(1) { product, _ in product * 10 }
        guard abs(value) * Double(scale) < 1e17 else { return "\(value)" }
        let scaled = Int((abs(value) * Double(scale)).rounded())
        let sign = value < 0 && scaled > 0 ? "-" : ""
        guard digits > 0 else { return "\(sign)\(scaled)" }
        let fraction = String(scaled % scale)
        return "\(sign)\(scaled / scale).\(String(repeating: "0", count: digits - fraction.count))\(fraction)"
    }

    /// Four digits or so, as losses and epsilons are compared.
    static func loss(_ value: Double?) -> String {
        guard let value else { return missing }
        return abs(value) < 1e4 ? decimal(value, 4) : "\(value)"
    }

    /// `73.70 %`
    static func share(_ value: Double?) -> String { value.map { decimal($0 * 100, 2) + " %" } ?? missing }

    /// `17.3`: a factor, with three digits or so.
    static func factor(_ value: Double?) -> String {
        guard let value else { return missing }
        return decimal(value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0)
    }

    /// Without zeros at the end: `0.5`, `3`, `1e-05`.
    static func plain(_ value: Double?) -> String {
        guard let value else { return missing }
        let text = "\(value)"
        return text.hasSuffix(".0") ? String(text.dropLast(2)) : text
    }

    /// `17.3 MB`: powers of 1000, three digits or so.
    static func bytes(_ count: Double?) -> String {
        guard let count else { return missing }
        let units = ["bytes", "kB", "MB", "GB", "TB", "PB", "EB"]
        var value = count
        var unit = 0
        while value >= 999.5, unit < units.count - 1 {
            value /= 1000
            unit += 1
        }
        return "\(decimal(value, unit == 0 || value >= 99.95 ? 0 : value < 9.995 ? 2 : 1)) \(units[unit])"
    }

    /// In text and in quoted attributes of XML and HTML; what XML cannot hold becomes a replacement character.
    static func escaped(_ text: String) -> String {
        var out = ""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "&": out += "&amp;"
            case "<": out += "&lt;"
            case ">": out += "&gt;"
            case "\"": out += "&quot;"
            case "'": out += "&#39;"
            case _ where scalar.value < 0x20 || scalar.value == 0x7F || scalar.value & 0xFFFE == 0xFFFE: out += "\u{FFFD}"
            default: out.unicodeScalars.append(scalar)
            }
        }
        return out
    }

    /// In a cell of a Markdown table.
    static func markdown(_ text: String) -> String {
        var out = ""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "|", "\\", "`", "*", "_", "<", "[": out += "\\\(scalar)"
            case _ where scalar.value < 0x20: out += " "
            default: out.unicodeScalars.append(scalar)
            }
        }
        return out
    }
}
