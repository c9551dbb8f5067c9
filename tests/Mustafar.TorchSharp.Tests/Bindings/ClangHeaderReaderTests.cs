using Mustafar.BindingGenerator.Clang;
using Mustafar.BindingGenerator.Model;
using NUnit.Framework.Constraints;

namespace Mustafar.Tests.Bindings;

[TestFixture]
public sealed class ClangHeaderReaderTests
{
    [Test]
    public void EnumValuesAreThoseOfTheCompiler()
    {
        HeaderModel model = HeaderText.Read("""
            typedef enum mustafar_mode {
                MUSTAFAR_MODE_A = 1u << 3,
                MUSTAFAR_MODE_B,
                MUSTAFAR_MODE_C = -4,
                MUSTAFAR_MODE_D,
                MUSTAFAR_MODE_E = MUSTAFAR_MODE_A * 2 + 1
            } mustafar_mode;
            enum mustafar_bare { MUSTAFAR_BARE_FIRST };
            """);

        Assert.That(model.Enums.Select(declared => declared.Name), IsSequence("mustafar_mode", "mustafar_bare"));
        Assert.That(
            model.Enums[0].Members.Select(member => (member.Name, member.Value)),
            Is.EqualTo(new[]
            {
                ("MUSTAFAR_MODE_A", 8), ("MUSTAFAR_MODE_B", 9), ("MUSTAFAR_MODE_C", -4), ("MUSTAFAR_MODE_D", -3),
                ("MUSTAFAR_MODE_E", 17),
            }));
        Assert.That(model.Enums[1].Members.Single().Value, Is.Zero);
    }

    [Test]
    public void UnnamedEnumsAreConstants()
    {
        HeaderModel model = HeaderText.Read("""
            enum { MUSTAFAR_ONE = 1, MUSTAFAR_TWO };
            enum { MUSTAFAR_TEN = 10 };
            """);

        Assert.That(model.Enums, Is.Empty);
        Assert.That(
            model.Constants.Select(constant => (constant.Name, constant.Value)),
            Is.EqualTo(new[] { ("MUSTAFAR_ONE", 1), ("MUSTAFAR_TWO", 2), ("MUSTAFAR_TEN", 10) }));
    }

    [Test]
    public void StructsKeepTheirFieldsInOrder()
    {
        HeaderModel model = HeaderText.Read("""
            #include <stddef.h>
            #include <stdint.h>
            typedef enum mustafar_mode { MUSTAFAR_MODE_A } mustafar_mode;
            typedef struct mustafar_handle mustafar_handle;
            typedef struct mustafar_inner { float scale; double precise; } mustafar_inner;
            typedef struct mustafar_outer {
                mustafar_inner inner;
                struct mustafar_outer* next;
                mustafar_mode mode;
                size_t count;
                char const * text;
                void * const * pages;
                const mustafar_handle *handle;
            } mustafar_outer;
            """);

        Assert.That(
            model.Structs.Select(declared => declared.Name),
            IsSequence("mustafar_handle", "mustafar_inner", "mustafar_outer"));
        Assert.That(model.Structs[0].Fields, Is.Null, "a struct without a definition is opaque");
        Assert.That(
            model.Structs[2].Fields!.Select(field => $"{field.Type.Spelling} {field.Name}"),
            IsSequence(
                "mustafar_inner inner", "mustafar_outer* next", "mustafar_mode mode", "size_t count", "const char* text",
                "void* const* pages", "const mustafar_handle* handle"));
    }

    [Test]
    public void AStructDefinedAfterItsFirstMentionIsNotOpaque()
    {
        HeaderModel model = HeaderText.Read("""
            typedef struct mustafar_node mustafar_node;
            int mustafar_walk(const mustafar_node* node);
            struct mustafar_node { mustafar_node* next; };
            """);

        Assert.That(model.Structs.Single().Fields!.Single().Type.Spelling, Is.EqualTo("mustafar_node*"));
    }

    [Test]
    public void PrototypesDoNotDependOnTheHeadersSpacing()
    {
        HeaderModel model = HeaderText.Read("""
            #include <stdint.h>
            #define MUSTAFAR_API __attribute__((visibility("default")))
            typedef struct mustafar_s { int32_t x; } mustafar_s;
            MUSTAFAR_API int32_t mustafar_none(void);
            MUSTAFAR_API const char *mustafar_text ( unsigned index , const int64_t count );
            MUSTAFAR_API void mustafar_many(const mustafar_s* restrict a,struct mustafar_s *b, uint8_t * const c,
                                            void*const*d, float e[4]);
            void mustafar_many(const mustafar_s* again, mustafar_s* b, uint8_t* c, void* const* d, float* e);
            """);

        Assert.That(model.Functions.Select(HeaderText.Prototype), IsSequence(
            "int32_t mustafar_none()",
            "const char* mustafar_text(unsigned int index, int64_t count)",
            "void mustafar_many(const mustafar_s* a, mustafar_s* b, uint8_t* c, void* const* d, float* e)"));
    }

    [Test]
    public void HeadersBesideAreReadAndSystemHeadersAreNot()
    {
        HeaderModel model = HeaderText.Read(
            """
            int mustafar_before(void);
            #include <stdlib.h>
            #include "beside.h"
            #include <string.h>
            int mustafar_after(void);
            """,
            "int mustafar_beside(void);");

        Assert.That(
            model.Functions.Select(function => function.Name),
            IsSequence("mustafar_before", "mustafar_beside", "mustafar_after"));
        Assert.That(model.Structs, Is.Empty);
    }

    [TestCase("typedef void (*mustafar_callback)(int);", "mustafar_callback", "function pointers")]
    [TestCase("int mustafar_f(int (*callback)(int));", "mustafar_f: callback", "function pointers")]
    [TestCase("void (*mustafar_f(int x))(int);", "mustafar_f", "function pointers")]
    [TestCase("struct mustafar_s { int (*callback)(void); };", "mustafar_s.callback", "function pointers")]
    [TestCase("union mustafar_u { int a; float b; };", "mustafar_u", "unions")]
    [TestCase("struct mustafar_s { union { int a; float b; } u; };", "mustafar_s.(unnamed)", "union inside a struct")]
    [TestCase("struct mustafar_s { struct { int a; } inner; };", "mustafar_s.(unnamed)", "struct inside a struct")]
    [TestCase("struct mustafar_s { int a : 3; };", "mustafar_s.a", "bit fields")]
    [TestCase("struct mustafar_s { int a[4]; };", "mustafar_s.a", "arrays")]
    [TestCase("struct mustafar_s { long a; };", "mustafar_s.a", "type long")]
    [TestCase("struct __attribute__((packed)) mustafar_s { char a; int b; };", "mustafar_s", "PackedAttr")]
    [TestCase("#pragma pack(1)\nstruct mustafar_s { char a; int b; };", "mustafar_s", "MaxFieldAlignmentAttr")]
    [TestCase("struct mustafar_s { int a __attribute__((aligned(64))); };", "mustafar_s.a", "AlignedAttr")]
    [TestCase("enum __attribute__((packed)) mustafar_e { MUSTAFAR_E_A };", "mustafar_e", "PackedAttr")]
    [TestCase("typedef struct { int a; } mustafar_s;", "an unnamed struct with the fields a", "structs need a name")]
    [TestCase("typedef enum { MUSTAFAR_E_A } mustafar_e;", "mustafar_e", "enums need a name")]
    [TestCase("typedef int mustafar_number;", "mustafar_number", "typedef")]
    [TestCase("int mustafar_f(const char* format, ...);", "mustafar_f", "variable arguments")]
    [TestCase("_Bool mustafar_f(void);", "mustafar_f", "type _Bool")]
    [TestCase("int mustafar_f(int a, long long b);", "mustafar_f: b", "type long long")]
    [TestCase("int mustafar_f();", "mustafar_f", "(void)")]
    [TestCase("static inline int mustafar_f(void) { return 0; }", "mustafar_f", "not exported")]
    [TestCase("extern int mustafar_variable;", "mustafar_variable", "VarDecl")]
    [TestCase("enum mustafar_e { MUSTAFAR_E_LARGE = 0x80000000 };", "MUSTAFAR_E_LARGE", "2147483648")]
    public void WhatCannotBeBoundIsNamed(string header, string declaration, string reason)
    {
        HeaderText.ClangOrIgnore();
        UnsupportedDeclarationException exception =
            Assert.Throws<UnsupportedDeclarationException>(() => HeaderText.Read(header));

        Assert.That(exception.Declaration, Is.EqualTo(declaration));
        Assert.That(exception.Message, Does.StartWith(declaration + ": ").And.Contains(reason));
    }

    [Test]
    public void TheCompilersErrorsAreReported()
    {
        HeaderText.ClangOrIgnore();
        BindingException exception = Assert.Throws<BindingException>(() => HeaderText.Read("int mustafar_f(missing_type x);"));

        Assert.That(exception.Message, Does.Contain("sample.h").And.Contains("missing_type"));
    }

    [TestCase(null)]
    [TestCase("")]
    [TestCase("/nowhere")]
    public void WithoutClangNoneIsFound(string? searchPath) => Assert.That(ClangTool.Find(searchPath), Is.Null);

    private static EqualConstraint<string> IsSequence(params string[] expected) => Is.EqualTo(expected);
}
