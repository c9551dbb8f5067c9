using System.CommandLine;
using System.Numerics;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Makes options.</summary>
internal static class CommandOption
{
    /// <summary>An option that has a value also where the command line doesn't give it.</summary>
    /// <param name="name">Its name, with dashes.</param>
    /// <param name="description">What it does.</param>
    /// <param name="value">The value where it isn't given.</param>
    /// <param name="helpName">What stands for its value in the help.</param>
    public static Option<T> WithDefault<T>(string name, string description, T value, string? helpName = null) => new(name)
    {
        Description = description,
        DefaultValueFactory = _ => value,
        HelpName = helpName,
    };

    /// <summary>A value that must be above 0.</summary>
    /// <param name="name">Its option.</param>
    /// <param name="value">The value.</param>
    /// <exception cref="CommandException">It is not.</exception>
    public static T Positive<T>(string name, T value)
        where T : struct, INumber<T> =>
        value > T.Zero ? value : throw new CommandException($"{name}: expected a number above 0, but got {value}.");
}
