using System.CommandLine;
using System.Numerics;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>A command of the program, with the options that all have.</summary>
internal abstract class LlamaCommand : Command
{
    private readonly CommonOptions _common = new();

    /// <summary>Describes a command.</summary>
    protected LlamaCommand(string name, string description)
        : base(name, description)
    {
        _common.AddTo(this);
    }

    /// <summary>Runs the command.</summary>
    /// <param name="arguments">The command line, without errors.</param>
    /// <param name="result">Standard output.</param>
    /// <param name="messages">Standard error.</param>
    /// <param name="showProgress">Whether standard error is a terminal.</param>
    public void Run(ParseResult arguments, TextWriter result, TextWriter messages, bool showProgress)
    {
        ConsoleOutput output = new(result, messages, _common.WantsJson(arguments), showProgress);
        Run(arguments, _common.Read(arguments), output);
    }

    /// <summary>Runs the command.</summary>
    protected abstract void Run(ParseResult arguments, CommonSettings settings, ConsoleOutput output);

    /// <summary>Gives the command its own options.</summary>
    protected void Add(params IEnumerable<Option> options)
    {
        foreach (Option option in options)
        {
            Options.Add(option);
        }
    }

    /// <summary>Refuses a dense cache, which no file holds, before any work is done that could not be kept.</summary>
    /// <param name="settings">The kind of cache.</param>
    /// <param name="options">Options that name a file, null where not given.</param>
    /// <exception cref="CommandException">A file is given, and the cache is dense.</exception>
    protected static void RequireCompressed(CommonSettings settings, params ReadOnlySpan<string?> options)
    {
        if (settings.Attention == AttentionKind.Dense && options.IndexOfAnyExcept((string?)null) >= 0)
        {
            throw new CommandException("--load and --save: expected a compressed cache, but --attention is dense.");
        }
    }

    /// <summary>The value of an option that must be above 0.</summary>
    /// <exception cref="CommandException">It is not.</exception>
    protected static T Positive<T>(ParseResult arguments, Option<T> option)
        where T : struct, INumber<T> => CommandOption.Positive(option.Name, arguments.GetValue(option));
}
