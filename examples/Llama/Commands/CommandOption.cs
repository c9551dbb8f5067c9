using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using System.Numerics;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Makes options. Numbers have the same format in every locale: a decimal point and no thousands separators.</summary>
internal static class CommandOption
{
    /// <summary>An option for a number.</summary>
    /// <param name="name">Its name, with dashes.</param>
    /// <param name="description">What it does.</param>
    /// <param name="helpName">What stands for its value in the help.</param>
    /// <param name="value">The value where it isn't given.</param>
    public static Option<T> Number<T>(string name, string description, string helpName, T value)
        where T : struct, INumber<T>
    {
        Option<T> option = new(name)
        {
            Description = description,
            HelpName = helpName,
            DefaultValueFactory = _ => value,
            CustomParser = result => Parse<T>(name, result) ?? default,
        };
        return option;
    }

    /// <summary>An option for a number, without a default.</summary>
    /// <param name="name">Its name, with dashes.</param>
    /// <param name="description">What it does.</param>
    /// <param name="helpName">What stands for its value in the help.</param>
    public static Option<T?> Number<T>(string name, string description, string helpName)
        where T : struct, INumber<T> => new(name)
        {
            Description = description,
            HelpName = helpName,
            CustomParser = result => Parse<T>(name, result),
        };

    /// <summary>An option for a text.</summary>
    /// <param name="name">Its name, with dashes.</param>
    /// <param name="description">What it does.</param>
    /// <param name="value">The value where it isn't given.</param>
    /// <param name="helpName">What stands for its value in the help.</param>
    public static Option<string> Text(string name, string description, string value, string helpName) => new(name)
    {
        Description = description,
        HelpName = helpName,
        DefaultValueFactory = _ => value,
    };

    /// <summary>An option that takes one of several words.</summary>
    /// <param name="name">Its name, with dashes.</param>
    /// <param name="description">What it does.</param>
    /// <param name="words">The words; the first is the default.</param>
    public static Option<string> Choice(string name, string description, params IReadOnlyList<string> words) => new(name)
    {
        Description = description,
        HelpName = string.Join('|', words),
        DefaultValueFactory = _ => words[0],
        CustomParser = result =>
        {
            string given = result.Tokens[0].Value;
            if (!words.Contains(given))
            {
                result.AddError($"{name}: expected {string.Join(", ", words.SkipLast(1))} or {words[^1]}, but got '{given}'.");
            }

            return given;
        },
    };

    /// <summary>Checks that a value is above 0.</summary>
    /// <param name="name">Its option.</param>
    /// <param name="value">The value.</param>
    /// <exception cref="CommandException">It is not.</exception>
    public static T Positive<T>(string name, T value)
        where T : struct, INumber<T> =>
        value > T.Zero ? value : throw new CommandException($"{name}: expected a number above 0, but got {value}.");

    /// <summary>Makes an object from options' values. An error about a value that is out of range names the option.</summary>
    /// <param name="make">Makes it.</param>
    /// <param name="options">The options that properties of the object come from.</param>
    /// <exception cref="CommandException">A value is out of range.</exception>
    public static T Made<T>(Func<T> make, params ReadOnlySpan<(string Property, Option Option)> options)
    {
        try
        {
            return make();
        }
        catch (ArgumentOutOfRangeException exception)
        {
            foreach ((string property, Option option) in options)
            {
                if (property == exception.ParamName)
                {
                    throw new CommandException($"{option.Name}: {Uncapitalised(exception.Message.Split(" (Parameter ")[0].TrimEnd('.'))}, "
                        + $"but got {string.Create(CultureInfo.InvariantCulture, $"{exception.ActualValue}")}.");
                }
            }

            throw;
        }
    }

    private static string Uncapitalised(string text) => char.ToLowerInvariant(text[0]) + text[1..];

    private static T? Parse<T>(string name, ArgumentResult result)
        where T : struct, INumber<T>
    {
        string text = result.Tokens[0].Value;
        bool isWhole = typeof(T) == typeof(int);
        if (T.TryParse(text, isWhole ? NumberStyles.AllowLeadingSign : NumberStyles.Float, CultureInfo.InvariantCulture, out T value))
        {
            return value;
        }

        string expected = isWhole ? "a whole number" : "a number such as 0.5";
        string hint = !isWhole && text.Contains(',') ? "; use a decimal point, not a comma" : "";
        result.AddError($"{name}: expected {expected}, but got '{text}'{hint}.");
        return null;
    }
}
