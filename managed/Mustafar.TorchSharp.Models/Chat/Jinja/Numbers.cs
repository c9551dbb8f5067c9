using System.Globalization;

namespace Mustafar.Models.Chat.Jinja;

/// <summary>Numbers as in Python. Integers have 64 bits; one that needs more is an error, never wrong.</summary>
internal static class Numbers
{
    /// <summary>A value as an integer: integers and booleans.</summary>
    public static bool TryInteger(object? value, out long number)
    {
        number = value switch { long integer => integer, true => 1, _ => 0 };
        return value is long or bool;
    }

    /// <summary>A value as a float: every number.</summary>
    public static bool TryFloat(object? value, out double number)
    {
        number = value switch { double real => real, long integer => integer, true => 1, _ => 0 };
        return value is long or bool or double;
    }

    /// <summary>The result of an operator on two numbers.</summary>
    /// <returns>False if one is not a number.</returns>
    /// <exception cref="JinjaException">It has no result: a division by zero, an integer out of range.</exception>
    public static bool TryCompute(string op, object? left, object? right, out object? result)
    {
        result = null;
        if (!TryFloat(left, out double x) || !TryFloat(right, out double y))
        {
            return false;
        }

        bool integers = TryInteger(left, out long a) & TryInteger(right, out long b);
        if (op is "/" or "//" or "%" && y == 0)
        {
            throw new JinjaException("division by zero.");
        }

        try
        {
            result = op switch
            {
                "+" => integers ? (object)checked(a + b) : x + y,
                "-" => integers ? (object)checked(a - b) : x - y,
                "*" => integers ? (object)checked(a * b) : x * y,
                "/" => x / y,
                "//" => integers ? (object)FloorDivide(a, b) : Math.Floor(x / y),
                "%" => integers ? (object)Modulo(a, b) : Modulo(x, y),
                "**" => integers && b >= 0 ? (object)Power(a, b) : Math.Pow(x, y),
                _ => null,
            };
        }
        catch (OverflowException)
        {
            throw new JinjaException($"the result of {left} {op} {right} has more than 64 bits, which is not supported.");
        }

        return result is not null;
    }

    /// <summary>A float as Python's <c>repr</c> writes it: the shortest digits that give the same float.</summary>
    public static string Repr(double number)
    {
        if (!double.IsFinite(number))
        {
            return double.IsNaN(number) ? "nan" : number > 0 ? "inf" : "-inf";
        }

        string[] parts = number.ToString("E16", CultureInfo.InvariantCulture).Split('E');
        int exponent = int.Parse(parts[1], CultureInfo.InvariantCulture);
        string shortest = number.ToString("R", CultureInfo.InvariantCulture);
        string sign = shortest[0] == '-' ? "-" : "";
        string digits = shortest.Split('E')[0].Replace(".", "", StringComparison.Ordinal).TrimStart('-').TrimStart('0').TrimEnd('0');
        digits = digits.Length == 0 ? "0" : digits;
        if (number == 0)
        {
            return sign + "0.0";
        }

        if (exponent is < -4 or >= 16)
        {
            string fraction = digits.Length > 1 ? "." + digits[1..] : "";
            return string.Create(CultureInfo.InvariantCulture, $"{sign}{digits[0]}{fraction}e{(exponent < 0 ? '-' : '+')}{Math.Abs(exponent):00}");
        }

        return exponent < 0 ? $"{sign}0.{new string('0', -exponent - 1)}{digits}"
            : digits.Length <= exponent + 1 ? $"{sign}{digits.PadRight(exponent + 1, '0')}.0"
            : $"{sign}{digits[..(exponent + 1)]}.{digits[(exponent + 1)..]}";
    }

    /// <summary>An integer in Python's spelling, with white space around it and underscores between digits.</summary>
    public static bool TryParse(string text, out long number)
    {
        text = Clean(text);
        return long.TryParse(text, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out number) && text.Length > 0;
    }

    /// <summary>A float in Python's spelling.</summary>
    public static bool TryParse(string text, out double number)
    {
        text = Clean(text);
        string word = text.TrimStart('+', '-').ToLowerInvariant();
        if (word is "inf" or "infinity" or "nan" && text.Length - word.Length <= 1)
        {
            number = word == "nan" ? double.NaN : text[0] == '-' ? double.NegativeInfinity : double.PositiveInfinity;
            return true;
        }

        const NumberStyles style = NumberStyles.AllowLeadingSign | NumberStyles.AllowDecimalPoint | NumberStyles.AllowExponent;
        return double.TryParse(text, style, CultureInfo.InvariantCulture, out number) && char.IsAsciiDigit(word.FirstOrDefault(char.IsAsciiDigit));
    }

    private static string Clean(string text)
    {
        text = text.Trim(PythonString.Spaces);
        bool separated = text.Length > 2 && text.Contains('_') && text[0] != '_' && text[^1] != '_' && !text.Contains("__", StringComparison.Ordinal);
        return separated ? text.Replace("_", "", StringComparison.Ordinal) : text;
    }

    private static long FloorDivide(long a, long b)
    {
        long quotient = checked(a / b);
        return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
    }

    private static long Modulo(long a, long b) => b == -1 ? 0 : ((a % b) + b) % b;

    private static double Modulo(double x, double y)
    {
        double rest = x % y;
        return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
    }

    private static long Power(long a, long b)
    {
        long result = 1;
        for (long square = a; b > 0; b >>= 1)
        {
            checked
            {
                result = (b & 1) == 1 ? result * square : result;
                square = b > 1 ? square * square : square;
            }
        }

        return result;
    }
}
